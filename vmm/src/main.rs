//! slat: a KVM microVM monitor on a guest memory service.

fn main() -> std::process::ExitCode {
    vmm::cli::main()
}
