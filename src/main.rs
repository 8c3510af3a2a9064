//! Entry point: parse, dispatch, exit code; and the process's allocator.

/// Training asks for the same large buffers thousands of times a step. glibc gives them back to the system each time, and
/// clearing the pages again cost a quarter of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    bespoke::cli::main()
}
