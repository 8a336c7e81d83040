"""Objects in buckets, `s3://…` and `gs://…`, and files on other servers; obstore asks for them.

`addresses` tells an address from a path, `stores` makes obstore's store of one, `objects` reads and
writes, and `problems` says in one line what went wrong.
"""

from probex_jax.buckets.addresses import address_of, is_address, joined, shown_path
from probex_jax.buckets.objects import (
    Content,
    Entry,
    Listing,
    all_below,
    delete,
    listed,
    read,
    stated,
    waited,
    write,
)
from probex_jax.buckets.problems import Conflict, NotThere, Refused, Unreachable, problems
from probex_jax.buckets.stores import Patience, store_of

__all__ = [
    "Conflict",
    "Content",
    "Entry",
    "Listing",
    "NotThere",
    "Patience",
    "Refused",
    "Unreachable",
    "address_of",
    "all_below",
    "delete",
    "is_address",
    "joined",
    "listed",
    "problems",
    "read",
    "shown_path",
    "stated",
    "store_of",
    "waited",
    "write",
]
