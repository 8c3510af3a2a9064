//! Entry point: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    bespoke::cli::main()
}
