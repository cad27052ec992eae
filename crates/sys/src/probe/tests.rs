//! Proofs on the kernel.
