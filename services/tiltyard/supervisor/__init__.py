"""``tiltyard up``: all of Tiltyard on one machine, as child processes of one supervisor.

    settings > requirements, folder, ports > children > supervise > spawn
                                                      > ready (asks the router whether everything serves)

``app`` wires them. ``process`` is the blocking counterpart that the demo, tests and benchmarks start processes with.
"""
