//! The process's allocator, llama.cpp's allocations included.
//!
//! It has two masters. A daemon that answers for months must not grow: what a large answer took has to go back to the system,
//! which glibc's arenas do late and mimalloc's pages hardly. Training asks for the same large buffers thousands of times a
//! step, and must not be handed pages to be cleared each time. jemalloc keeps what was freed for some seconds and lets it go
//! then.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

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
