//! Memory that C and C++ have freed.

/// Gives back to the system what llama.cpp has freed and the allocator of C keeps. What an adapter leaves behind would lie
/// scattered, and the next one would take more.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
