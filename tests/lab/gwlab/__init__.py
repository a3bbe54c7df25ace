# SPDX-License-Identifier: Apache-2.0
"""Godwit's lab: emulated hosts with real KVM, their network, and the guests that run in them.

How it works. `lab up` forks a supervisor (supervisor.py) that owns everything: it enters a private network namespace
(network.py), starts one emulator a host in it (emulator.py) and serves requests on a UNIX socket (control.py). A guardian
(guardian.py) outside waits for the supervisor's end, however it comes, and gives back what a kernel does not take back by
itself: huge pages, the state directory, processes left in the namespace. Commands reach a host through labd (../labd.c) over a
management network (remote.py) that `lab net` never touches.
"""
