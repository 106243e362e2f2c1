//! The `hapax` binary: see `hapax --help`.

fn main() -> std::process::ExitCode {
    hapax::cli::main()
}
