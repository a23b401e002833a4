"""The harness itself: a real front end runs a cell, shows it, stops it, saves it."""

import re


def test_a_cell_runs_and_shows_its_output(front_end):
    front_end.open(["print(6*7)"])
    front_end.run(0)
    front_end.wait_text(0, re.compile("^42$"))
    assert front_end.outputs(0) == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]
    assert front_end.external_requests == []


def test_the_stop_button_interrupts_a_sleeping_cell(front_end):
    front_end.open(["import time\nprint('asleep', flush=True)\ntime.sleep(60)", "print('next')"])
    front_end.run(0, wait=False)
    front_end.wait_text(0, "asleep")
    front_end.stop()
    front_end.wait_idle(0, timeout=10)
    front_end.wait_text(0, "KeyboardInterrupt")
    front_end.run(1)
    front_end.wait_text(1, re.compile("^next$"))


def test_a_saved_notebook_opens_without_a_kernel(front_end):
    front_end.open(["6*7", "print('second')"])
    front_end.run_all()
    assert front_end.save()["cells"][0]["outputs"][0]["data"]["text/plain"] == "42"
    front_end.reload()
    front_end.wait_text(0, re.compile("^42$"))
    front_end.reopen_without_kernel()
    front_end.wait_text(0, re.compile("^42$"))
    front_end.wait_text(1, re.compile("^second$"))
    assert front_end.server.api("GET", "kernels") == []


def test_each_kernel_has_its_ipykernel(lab, kernel):
    lab.open(["import ipykernel; print(ipykernel.__version__)"], kernel=kernel)
    lab.run(0)
    assert lab.wait_text(0, re.compile(r"7\.\d+\.\d+")).startswith("7.3.") == kernel.endswith("7.3")
    lab.restart_kernel()
    lab.run(0)
