"""What the wire tests stand on: hand-built frames on both sides of a router, and a ledger of what was asked.

client.py    RawClient: an HTTP/2 client that sends any frame, good or hostile
backend.py   ScriptedBackend: a model server or service that answers, stalls, resets and talks nonsense as told
routers.py   CoreRouter (the core in a thread) and start_process (the real thing)
messages.py  PredictRequests, answers, gRPC framing, receipts
ledger.py    Ledger: what the client saw, to be held against the router's counters
"""
