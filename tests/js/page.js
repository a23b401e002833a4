// As much of a page as the view needs to be drawn without a browser. Nothing in it is laid out.

class Node {
  constructor(tag, text = "") {
    this.tag = tag;
    this.text = text;
    this.parent = null;
    this.children = [];
    this.attributes = new Map();
    this.names = new Set();
    this.listeners = {};
    this.dataset = {};
    this.hidden = false;
    this.scrollTop = 0;
    this.clientHeight = 200;
    this.clientWidth = 0;
    this.offsetHeight = 200;
    this.style = { setProperty() {} };
    this.classList = {
      add: (name) => this.names.add(name),
      contains: (name) => this.names.has(name),
      toggle: (name, wanted = !this.names.has(name)) => {
        this.names[wanted ? "add" : "delete"](name);
        return wanted;
      },
    };
  }

  set className(names) {
    this.names = new Set(names.split(" "));
  }

  get textContent() {
    return this.text + this.children.map((child) => child.textContent).join("");
  }

  set textContent(text) {
    this.replaceChildren();
    this.text = text;
  }

  get scrollHeight() {
    return 20 * this.children.length;
  }

  get nextSibling() {
    const { children } = this.parent;
    return children[children.indexOf(this) + 1] ?? null;
  }

  setAttribute(name, value) {
    this.attributes.set(name, String(value));
  }

  getAttribute(name) {
    return this.attributes.get(name) ?? null;
  }

  removeAttribute(name) {
    this.attributes.delete(name);
  }

  addEventListener(kind, act) {
    this.listeners[kind] = act;
  }

  click() {
    this.listeners.click({ stopPropagation() {} });
  }

  insert(at, nodes) {
    const made = nodes.map((node) => (typeof node === "string" ? new Node("#text", node) : node));
    for (const node of made) {
      node.remove();
      node.parent = this;
    }
    this.children.splice(at, 0, ...made);
  }

  append(...nodes) {
    this.insert(this.children.length, nodes);
  }

  after(node) {
    node.remove();
    this.parent.insert(this.parent.children.indexOf(this) + 1, [node]);
  }

  replaceWith(node) {
    this.after(node);
    this.remove();
  }

  replaceChildren(...nodes) {
    for (const child of [...this.children]) child.remove();
    this.scrollTop = 0; // as of what is no longer high enough
    this.append(...nodes);
  }

  remove() {
    if (!this.parent) return;
    this.parent.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }

  contains(node) {
    return node === this || this.children.some((child) => child.contains(node));
  }

  /** All nodes below it with this class, in their order. */
  all(name) {
    return this.children.flatMap((child) => [...(child.names.has(name) ? [child] : []), ...child.all(name)]);
  }

  /** The first of them. */
  one(name) {
    return this.all(name)[0];
  }
}

const frames = [];

/** Draws what waits for the next frame of the screen. */
export function paint() {
  for (const draw of frames.splice(0)) draw();
}

/** Makes the globals that the view uses; returns the place where it can be rendered. */
export function page() {
  class Observer {
    observe() {}
    disconnect() {}
  }
  Object.assign(globalThis, {
    document: { createElement: (tag) => new Node(tag), activeElement: null, hidden: false },
    ResizeObserver: Observer,
    requestAnimationFrame: (draw) => frames.push(draw),
    cancelAnimationFrame: () => {},
    getComputedStyle: () => ({ fontSize: "13px", backgroundColor: "", color: "" }),
  });
  return new Node("div");
}
