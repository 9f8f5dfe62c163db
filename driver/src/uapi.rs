//! The ioctl of `/dev/azure_blob`: struct layout, both command numbers, compile-time size checks.
