//! Memory that C and C++ have freed.

/// Has all threads share one heap of the allocator of C. Each would get one of its own, and what one of them has freed the
/// others don't use: some megabytes lay about so, more or fewer from minute to minute. To be called before threads are
/// started; they allocate little and seldom at the same time.
pub fn share_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time; it only sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back to the system what llama.cpp has freed and the allocator of C keeps. What an adapter leaves behind would lie
/// scattered, and the next one would take more.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
