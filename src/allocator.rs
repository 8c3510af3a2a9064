//! The process's allocator, llama.cpp's allocations included.
//!
//! It has two masters. A daemon that answers for months must not grow: what a large answer took has to go back to the system,
//! which glibc's arenas do late and mimalloc's pages hardly. Training asks for the same large buffers thousands of times a
//! step, and must not be handed pages to be cleared each time. jemalloc keeps what was freed for some seconds and lets it go
//! then.

use std::alloc::{GlobalAlloc, Layout};
#[cfg(target_os = "linux")]
use std::ffi::{c_char, c_int, c_void};
#[cfg(target_os = "linux")]
use std::ptr::null_mut;

use tikv_jemallocator::Jemalloc;

// Miri can't call C, and follows allocations itself.
#[cfg_attr(not(miri), global_allocator)]
#[cfg_attr(miri, allow(dead_code))]
static ALLOCATOR: Zeroing = Zeroing;

/// jemalloc, but for zeroed memory: it zeroes large buffers by giving their pages back and taking them anew, which costs a
/// page fault for every 4 KiB and a halt of every processor (two fifths of a training step in a virtual machine). Who asks for
/// zeros fills the buffer soon after, so writing them is cheaper.
#[cfg_attr(miri, allow(dead_code))]
struct Zeroing;

// SAFETY: every call goes to jemalloc with the arguments that came; zeros are written into what it gave for this layout.
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
    /// jemalloc's, which goes by its own name where it stands in for malloc.
    fn mallctl(
        name: *const c_char,
        old: *mut c_void,
        old_length: *mut usize,
        new: *mut c_void,
        new_length: usize,
    ) -> c_int;
}

/// Gives what was freed so far back to the system at once, instead of in some seconds. To be called
/// where much was freed that will not be asked for again.
pub fn give_back() {
    #[cfg(target_os = "linux")]
    {
        // The number stands for all arenas (jemalloc's MALLCTL_ARENAS_ALL).
        let name = c"arena.4096.purge";
        // SAFETY: the name is one of jemalloc's; it reads and writes nothing of ours.
        #[allow(unsafe_code, reason = "a function of C")]
        let code = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if code != 0 {
            tracing::debug!(code, "jemalloc gives nothing back");
        }
    }
}

/// Read by jemalloc before it begins (linked because it stands beside what the linker looks for, the allocator; a test holds
/// that it was read). A thread of its own gives memory back while nothing is asked for. Buffers of 8 MiB and
/// more, of which training has many, are treated like others instead of being given back at once.
#[unsafe(export_name = "malloc_conf")]
#[allow(unsafe_code, reason = "jemalloc looks for its settings under this name")]
static SETTINGS: Settings = Settings(c"background_thread:true,oversize_threshold:0".as_ptr());

#[repr(transparent)]
struct Settings(*const std::ffi::c_char);

// SAFETY: it points to a constant.
#[allow(unsafe_code, reason = "a pointer in a static variable")]
unsafe impl Sync for Settings {}
