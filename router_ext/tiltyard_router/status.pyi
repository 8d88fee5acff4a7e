"""Names for the ints that the layers of the core return."""

OWN_STATUSES: dict[str, int]

def status_name(rv: int) -> str: ...
