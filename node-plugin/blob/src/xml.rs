//! The XML bodies of the service: listings, block lists, errors.
