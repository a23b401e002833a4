// What one browser says to one kernel: hello, commands until they are acknowledged, and how long it is silent.
// Guarantees: hello is said until the whole picture comes, and again when a frame is missing; a command is
// sent again, with its ref, until its acknowledgement comes. Knows no document; `now` is in ms.

const HELLO = 1000; // ms between two hellos
const RESEND = 700; // ms until a command is sent again
export const IMPATIENT = 1000; // ms without an ack until the button says so
const DOUBT = 6500; // ms without a frame until it is asked whether it is there; Python sends one every 5 s
const SILENCE = 12000; // and until the kernel counts as lost

export class KernelLine {
  constructor(send, client, onChange, now = () => performance.now()) {
    this.post = send;
    this.client = client;
    this.onChange = onChange;
    this.now = now;
    this.expected = null; // the number of the next frame; null: a picture is wanted
    this.heard = now();
    this.greeted = Number.NEGATIVE_INFINITY;
    this.gone = false; // the comm was closed: nobody will ever answer
    this.commands = new Map(); // from ref to what was asked and when
    this.count = 0;
    this.error = "";
    this.errorAt = 0;
  }

  send(message) {
    if (this.gone) return;
    try {
      this.post({ ...message, client: this.client });
    } catch {
      this.gone = true;
    }
  }

  /** Whether this frame is the next one; else the whole picture is asked for again. */
  accept(message) {
    this.heard = this.now();
    this.gone = false;
    if (message.kind === "picture" || message.number === this.expected) {
      this.expected = message.number + 1;
      return true;
    }
    this.expected = null;
    this.greet();
    return false;
  }

  greet() {
    if (this.now() - this.greeted < HELLO - 50) return;
    this.greeted = this.now();
    this.send({ kind: "hello" });
  }

  /** The comm came or went: a hello finds out, since sending on a dead one fails. */
  doubt() {
    this.greeted = Number.NEGATIVE_INFINITY;
    this.greet();
  }

  ask(verb, more, key) {
    for (const command of this.commands.values()) if (command.key === key) return;
    const ref = `${this.client}-${++this.count}`;
    const now = this.now();
    const message = { kind: "command", ref, verb, ...more };
    this.commands.set(ref, { key, message, asked: now, sent: now });
    this.send(message);
    this.onChange();
  }

  acknowledged({ ref, error }) {
    this.heard = this.now();
    if (!this.commands.delete(ref)) return;
    if (error) {
      this.error = error;
      this.errorAt = this.now();
    }
    this.onChange();
  }

  tick(running) {
    const now = this.now();
    if (this.expected === null || (running && now - this.heard > DOUBT)) this.greet();
    for (const command of this.commands.values()) {
      if (now - command.sent > RESEND) {
        command.sent = now;
        this.send(command.message);
      }
    }
  }

  /** How long this command has waited for its acknowledgement, in ms; 0: there is none. */
  pending(key) {
    for (const command of this.commands.values())
      if (command.key === key) return Math.max(1, this.now() - command.asked);
    return 0;
  }

  impatient() {
    for (const command of this.commands.values()) if (this.now() - command.asked > IMPATIENT) return true;
    return false;
  }

  /** How long the kernel has been silent, in ms. */
  silent() {
    return this.now() - this.heard;
  }

  lost(running) {
    return this.gone || (running && this.expected !== null && this.silent() > SILENCE);
  }
}
