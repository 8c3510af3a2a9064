//! The process's allocator, which also serves llama.cpp's allocations.
//!
//! The two workloads want opposite things. A daemon that runs for months must not grow: memory of a
//! large answer has to return to the system, which glibc's arenas do late and mimalloc's pages
//! hardly at all. Training allocates the same large buffers thousands of times a step, and must not
//! get pages that the kernel clears each time. jemalloc keeps freed memory for some seconds and
//! then returns it, which suits both.

use std::alloc::{GlobalAlloc, Layout};
#[cfg(target_os = "linux")]
use std::ffi::{c_char, c_int, c_void};
#[cfg(target_os = "linux")]
use std::ptr::null_mut;

use tikv_jemallocator::Jemalloc;

// Miri can't call C, and tracks allocations itself.
#[cfg_attr(not(miri), global_allocator)]
#[cfg_attr(miri, allow(dead_code))]
static ALLOCATOR: Zeroing = Zeroing;

/// jemalloc, except for zeroed memory. jemalloc zeroes large buffers by returning their pages and
/// mapping new ones, which costs a page fault for every 4 KiB and an interrupt of every
/// processor (two fifths of a training step in a virtual machine). The caller fills a zeroed buffer
/// soon anyway, so writing the zeros here is cheaper.
#[cfg_attr(miri, allow(dead_code))]
struct Zeroing;

// SAFETY: every call forwards its arguments to jemalloc. Zeros are written only into the block that
// jemalloc returned for this layout.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Zeroing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { Jemalloc.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let start = unsafe { Jemalloc.alloc(layout) };
        if !start.is_null() {
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        unsafe { Jemalloc.dealloc(start, layout) };
    }
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { Jemalloc.realloc(start, layout, size) }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "a function of C")]
unsafe extern "C" {
    /// jemalloc's `mallctl`, which has this unprefixed name where jemalloc replaces malloc.
    fn mallctl(
        name: *const c_char,
        old: *mut c_void,
        old_length: *mut usize,
        new: *mut c_void,
        new_length: usize,
    ) -> c_int;
}

/// Returns freed memory to the system at once instead of after some seconds. Call it after freeing
/// a lot of memory that will not be needed again.
pub fn give_back() {
    #[cfg(target_os = "linux")]
    {
        // 4096 stands for all arenas (jemalloc's `MALLCTL_ARENAS_ALL`).
        let name = c"arena.4096.purge";
        // SAFETY: the name is a valid jemalloc command; with null pointers it reads and writes
        // nothing of ours.
        #[allow(unsafe_code, reason = "a function of C")]
        let code = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if code != 0 {
            tracing::debug!(code, "jemalloc gives nothing back");
        }
    }
}

/// Settings that jemalloc reads at startup. The static is linked because it is in the same object
/// as the allocator; a test checks that jemalloc has read it. A background thread returns memory
/// while the process is idle. Buffers of 8 MiB and more, of which training has many, are kept like
/// smaller ones instead of being returned at once.
#[unsafe(export_name = "malloc_conf")]
#[allow(unsafe_code, reason = "jemalloc looks for its settings under this name")]
static SETTINGS: Settings = Settings(c"background_thread:true,oversize_threshold:0".as_ptr());

#[repr(transparent)]
struct Settings(*const std::ffi::c_char);

// SAFETY: the pointer points to a constant.
#[allow(unsafe_code, reason = "a pointer in a static variable")]
unsafe impl Sync for Settings {}
