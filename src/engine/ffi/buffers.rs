//! Memory of a context's large buffers, which the system provides page by page: a page that was
//! never written takes none.
//!
//! llama.cpp clears the KV cache when it creates a context, which writes every page of it, and
//! copies a sequence by copying all cells that it could have. Both are functions of the buffer that
//! holds the cache, and CPU buffers are created through a table of functions that can be changed.
//! Here, a buffer that is created for a context is mapped instead of allocated: it is zero from the
//! start, clearing it gives its pages back, and a copy ends where the sequence does.
//!
//! Buffers of weights that llama.cpp reads into memory are mapped as well, in huge pages: each
//! token reads all weights in order, and TLB misses on small pages take an eighth of that time.
//! Huge pages have to be requested before the weights are read. Moving weights afterwards takes
//! longer than reading them.

#![allow(clippy::cast_ptr_alignment, reason = "a buffer of ggml is of the type that is laid out here")]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int, c_void};
use std::mem::size_of;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

type Raw = sys::ggml_backend_buffer_t;
type Kind = sys::ggml_backend_buffer_type_t;
type Tensor = sys::ggml_tensor;
/// A function that is only passed on.
type Opaque = Option<unsafe extern "C" fn()>;

/// `struct ggml_backend_buffer_type` of `ggml-backend-impl.h`.
#[repr(C)]
struct BufferKind {
    get_name: Opaque,
    alloc_buffer: Option<unsafe extern "C" fn(Kind, usize) -> Raw>,
    alloc_buffer_n: Opaque,
    get_alignment: Opaque,
    get_max_size: Opaque,
    get_alloc_size: Opaque,
    get_alloc_size_n: Opaque,
    is_host: Opaque,
    device: *mut c_void,
    context: *mut c_void,
}

/// `struct ggml_backend_buffer_i` of the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct Functions {
    free_buffer: Option<unsafe extern "C" fn(Raw)>,
    get_base: Option<unsafe extern "C" fn(Raw) -> *mut c_void>,
    init_tensor: Option<unsafe extern "C" fn(Raw, *mut Tensor) -> c_int>,
    memset_tensor: Opaque,
    set_tensor: Option<unsafe extern "C" fn(Raw, *mut Tensor, *const c_void, usize, usize)>,
    get_tensor: Opaque,
    set_tensor_2d: Opaque,
    get_tensor_2d: Opaque,
    cpy_tensor: Opaque,
    clear: Option<unsafe extern "C" fn(Raw, u8)>,
    reset: Opaque,
}

/// `struct ggml_backend_buffer` of the same.
#[repr(C)]
struct Buffer {
    functions: Functions,
    kind: Kind,
    context: *mut c_void,
    size: usize,
    usage: sys::ggml_backend_buffer_usage,
}

unsafe extern "C" {
    fn ggml_backend_buffer_init(kind: Kind, functions: Functions, context: *mut c_void, size: usize) -> Raw;
}

/// How llama.cpp itself creates CPU buffers.
#[derive(Clone, Copy)]
struct Usual {
    allocate: unsafe extern "C" fn(Kind, usize) -> Raw,
    functions: Functions,
}

static USUAL: OnceLock<Usual> = OnceLock::new();

/// One half of a layer's cache: its keys or its values, `[streams, cells, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Half {
    start: *mut u8,
    /// Bytes of a cell.
    pub(super) place: usize,
    places: usize,
    /// Bytes of a stream.
    stream: usize,
}

/// What is recorded while a context is created.
#[derive(Default)]
struct Making {
    buffers: Vec<NonNull<Buffer>>,
    halves: Vec<Half>,
}

/// A pending copy of a sequence: its source and target streams, and its number of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handed {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) places: usize,
}

thread_local! {
    /// Set while this thread creates a context.
    static MAKING: RefCell<Option<Making>> = const { RefCell::new(None) };
    /// Set while this thread reads weights into memory.
    static READING: Cell<bool> = const { Cell::new(false) };
    /// The copies that the current batch of this thread begins with.
    static HANDED: RefCell<Vec<Handed>> = const { RefCell::new(Vec::new()) };
}

/// Records something, if this thread is creating a context.
fn noting<R>(note: impl FnOnce(&mut Making) -> R) -> Option<R> {
    // A thread that frees its context while it ends is not creating one.
    MAKING.try_with(|making| making.borrow_mut().as_mut().map(note)).ok().flatten()
}

/// Hooks into the creation of buffers. Must be called before any buffer is created. Returns whether
/// it could: llama.cpp's tables must have the layout of the version that this is written for.
pub fn take_part() -> bool {
    // SAFETY: the table lives as long as the program, and nothing else uses it yet. It is written
    // only if each of its words looks like that of the version that this is written for. The sample
    // is freed.
    unsafe {
        let kind = sys::ggml_backend_cpu_buffer_type();
        let table = kind.cast::<BufferKind>();
        let words = table.cast::<[usize; size_of::<BufferKind>() / size_of::<usize>()]>();
        if (*words).map(|word| word != 0)
            != [true, true, false, true, false, false, false, true, false, false]
        {
            return false;
        }
        const SAMPLE: usize = 64;
        let sample = sys::ggml_backend_buft_alloc_buffer(kind, SAMPLE);
        let Some(buffer) = sample.cast::<Buffer>().as_ref() else { return false };
        let functions = buffer.functions;
        let words = std::ptr::from_ref(buffer).cast::<[usize; size_of::<Functions>() / size_of::<usize>()]>();
        let known = (*words).map(|word| word != 0)
            == [true, true, false, true, true, true, false, false, true, true, false]
            && (buffer.kind, buffer.size) == (kind, SAMPLE)
            && buffer.context == sys::ggml_backend_buffer_get_base(sample);
        sys::ggml_backend_buffer_free(sample);
        let Some(allocate) = (*table).alloc_buffer.filter(|_| known) else { return false };
        if USUAL.set(Usual { allocate, functions }).is_ok() {
            (*table).alloc_buffer = Some(make);
        }
        true
    }
}

/// Runs a function that creates a context. Returns its result and the halves of the cache.
pub(super) fn making<R>(make: impl FnOnce() -> R) -> (R, Vec<Half>) {
    MAKING.set(Some(Making::default()));
    let made = make();
    let Making { buffers, halves } = MAKING.take().unwrap_or_default();
    for mut buffer in buffers {
        // SAFETY: a buffer of the context that was just created; freed buffers are not in the list.
        // The tensors of graphs don't have to be recorded.
        unsafe { buffer.as_mut() }.functions.init_tensor = None;
    }
    (made, halves)
}

/// Runs a function that reads weights into memory, in huge pages if the system has them.
pub fn reading_weights<R>(read: impl FnOnce() -> R) -> R {
    READING.set(true);
    let result = read();
    READING.set(false);
    result
}

/// Runs a function that computes a batch. Sequences that it copies first are copied only as far as
/// `handed` says.
pub(super) fn handing<R>(handed: &[Handed], compute: impl FnOnce() -> R) -> R {
    HANDED.with_borrow_mut(|known| {
        known.clear();
        known.extend_from_slice(handed);
    });
    let computed = compute();
    HANDED.with_borrow_mut(Vec::clear);
    computed
}

impl Half {
    /// Gives back the memory of a stream's cells from `from` on, which then hold zeros.
    ///
    /// # Safety
    /// The cache lives, and nothing reads or writes it meanwhile.
    pub(super) unsafe fn give_back(&self, stream: usize, from: usize) {
        let (from, all) = (from.min(self.places) * self.place, self.places * self.place);
        // SAFETY: within the stream. Only whole pages: partly used ones stay.
        unsafe {
            let (start, page) = (self.start.byte_add(stream * self.stream + from), page());
            let skipped = start.align_offset(page);
            if let Some(length) = (all - from).checked_sub(skipped).map(|length| length / page * page)
                && length > 0
            {
                zero(start.byte_add(skipped).cast(), length);
            }
        }
    }
}

/// Creates a buffer.
unsafe extern "C" fn make(kind: Kind, size: usize) -> Raw {
    let Some(usual) = USUAL.get() else { return null_mut() };
    if noting(|_| ()).is_none() {
        let start = if READING.get() { map_huge(size) } else { None };
        // SAFETY: the call that llama.cpp would have made; or the functions of a CPU buffer, except
        // for the one that frees the buffer, which unmaps its memory.
        return unsafe {
            match start {
                None => (usual.allocate)(kind, size),
                Some(start) => {
                    let functions = Functions { free_buffer: Some(free), ..usual.functions };
                    ggml_backend_buffer_init(kind, functions, start.as_ptr(), size)
                }
            }
        };
    }
    let Some(start) = map(size) else { return null_mut() };
    let functions = Functions {
        free_buffer: Some(free),
        init_tensor: Some(note),
        set_tensor: Some(set),
        clear: Some(clear),
        ..usual.functions
    };
    // SAFETY: the functions are those of a CPU buffer, except for ours, which find the memory in
    // the same place.
    unsafe {
        let made = ggml_backend_buffer_init(kind, functions, start.as_ptr(), size);
        noting(|making| making.buffers.extend(NonNull::new(made.cast())));
        made
    }
}

unsafe extern "C" fn free(buffer: Raw) {
    noting(|making| making.buffers.retain(|made| made.as_ptr() != buffer.cast()));
    // SAFETY: `make` created the buffer, and its memory is no longer used.
    unsafe {
        let Buffer { context, size, .. } = *buffer.cast::<Buffer>();
        libc::munmap(context, size);
    }
}

unsafe extern "C" fn clear(buffer: Raw, value: u8) {
    // SAFETY: `make` created the buffer, with this size.
    unsafe {
        let Buffer { context, size, .. } = *buffer.cast::<Buffer>();
        if value != 0 {
            return context.cast::<u8>().write_bytes(value, size);
        }
        zero(context, size);
        // The buffer is a cache of which a part is used. If the system gives huge pages without
        // being asked, a few cells would take one each.
        #[cfg(target_os = "linux")]
        libc::madvise(context, size, libc::MADV_NOHUGEPAGE);
    }
}

/// Records the halves of a cache, which llama.cpp's tensor names identify.
unsafe extern "C" fn note(_: Raw, tensor: *mut Tensor) -> c_int {
    // SAFETY: the tensor is being given its memory, and has its name and sizes.
    let tensor = unsafe { &*tensor };
    if tensor.view_src.is_null() && is_half(tensor) {
        let half = Half {
            start: tensor.data.cast(),
            place: tensor.nb[1],
            places: usize::try_from(tensor.ne[1]).unwrap_or(0),
            stream: tensor.nb[2],
        };
        noting(|making| making.halves.push(half));
    }
    sys::GGML_STATUS_SUCCESS
}

/// Writes into a tensor. If a stream is written from another stream of the same cache, a sequence
/// is being copied.
unsafe extern "C" fn set(buffer: Raw, tensor: *mut Tensor, data: *const c_void, offset: usize, size: usize) {
    // SAFETY: the tensor is in the buffer, and `size` bytes can be read from `data` and written at
    // `offset`. So can fewer.
    unsafe {
        let size = known_part(&*tensor, data, offset, size);
        if let Some(set) = USUAL.get().and_then(|usual| usual.functions.set_tensor) {
            set(buffer, tensor, data, offset, size);
        }
    }
}

/// The number of bytes, of `size`, that have to be written.
///
/// # Safety
/// The tensor is a living one of llama.cpp's.
unsafe fn known_part(tensor: &Tensor, data: *const c_void, offset: usize, size: usize) -> usize {
    // SAFETY: the source of a view lives as long as the view.
    let Some(whole) = (unsafe { tensor.view_src.as_ref() }) else { return size };
    let stream = whole.nb[2];
    if offset != 0 || size != stream || !is_half(whole) {
        return size;
    }
    let at = |address: usize| {
        let from = address.checked_sub(whole.data.addr())?;
        (from % stream == 0 && from / stream < usize::try_from(whole.ne[2]).unwrap_or(0))
            .then_some(from / stream)
    };
    let (from, to) = (at(data.addr()), at(tensor.data.addr()));
    HANDED.with_borrow(|handed| {
        let handed = handed.iter().find(|handed| (Some(handed.from), Some(handed.to)) == (from, to));
        handed.map_or(size, |handed| size.min(handed.places * whole.nb[1]))
    })
}

/// Whether a tensor is the keys or the values of a layer, with a row for each cell.
fn is_half(tensor: &Tensor) -> bool {
    // SAFETY: the name of a tensor ends within its field.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_bytes();
    let Some(name) = name.strip_prefix(b"cache_") else { return false };
    name.starts_with(b"k_l") || name.starts_with(b"v_l")
}

/// Maps zeroed memory without any resident page.
fn map(size: usize) -> Option<NonNull<c_void>> {
    // SAFETY: a new mapping doesn't affect existing memory.
    let start = unsafe { libc::mmap(null_mut(), size, WRITABLE, FRESH, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start) }
}

/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// Maps zeroed memory, in huge pages if the system has them. `None` if `size` is less than one, or
/// the system refuses.
fn map_huge(size: usize) -> Option<NonNull<c_void>> {
    if size < HUGE {
        return None;
    }
    let whole = size.checked_next_multiple_of(page())?;
    let start = map(whole.checked_add(HUGE)?)?;
    let before = start.addr().get().next_multiple_of(HUGE) - start.addr().get();
    // SAFETY: within the mapping that was just created, which nothing uses yet. Only whole pages
    // are unmapped.
    unsafe {
        let aligned = start.byte_add(before);
        if before > 0 {
            libc::munmap(start.as_ptr(), before);
        }
        libc::munmap(aligned.as_ptr().byte_add(whole), HUGE - before);
        #[cfg(target_os = "linux")]
        if libc::madvise(aligned.as_ptr(), whole / HUGE * HUGE, libc::MADV_HUGEPAGE) != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, bytes = size, "weights are read into small pages");
        }
        Some(aligned)
    }
}

/// Size of a page in bytes.
fn page() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    // SAFETY: returns a number.
    *PAGE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(64 << 10))
}

const WRITABLE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const FRESH: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Zeroes memory of such a mapping and gives its pages back.
///
/// # Safety
/// `start` is at the beginning of a page, and the `length` bytes from there on belong to one
/// mapping, which nothing uses meanwhile.
unsafe fn zero(start: *mut c_void, length: usize) {
    // SAFETY: the caller's promise. A mapping that replaces another is zero. If it can't be
    // created, the old one stays, and is overwritten.
    unsafe {
        #[cfg(target_os = "linux")]
        let zeroed = libc::madvise(start, length, libc::MADV_DONTNEED) == 0;
        #[cfg(not(target_os = "linux"))]
        let zeroed = libc::mmap(start, length, WRITABLE, FRESH | libc::MAP_FIXED, -1, 0) != libc::MAP_FAILED;
        if !zeroed {
            start.cast::<u8>().write_bytes(0, length);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
