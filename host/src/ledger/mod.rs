//! What a generation holds in the host: everything that would make unloading unsafe or leaky.
