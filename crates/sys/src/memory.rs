//! How the process's heap behaves towards the kernel.

/// Gives heap pages that nothing uses back to the kernel. Takes up to a few
/// milliseconds; for after something large was in memory once.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and keeps to the allocator's own locks; it
    // is safe in any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the heap of a long-lived process small: few arenas, and large blocks given
/// back as soon as they are freed. To be called once, before other threads are there.
///
/// glibc otherwise makes up to eight arenas a core, each of which keeps what its
/// busiest moment needed, and raises the size from which blocks are mapped for
/// themselves up to 32 MiB as soon as one such block was freed (mallopt(3),
/// M_MMAP_THRESHOLD), so that the text of one list stays in the heap.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes no pointers. These parameters and values are documented;
    // a refused one changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Arenas of [`keep_small`]: as many as the agent has threads that work at once.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// From this size on a block is mapped for itself: glibc's own first threshold.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

#[cfg(test)]
mod tests {
    #[test]
    fn can_be_called() {
        super::keep_small();
        super::trim();
    }
}
