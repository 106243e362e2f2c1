//! The `hapax` command. Everything about it is in `src/cli/`.

fn main() -> std::process::ExitCode {
    hapax::cli::main()
}
