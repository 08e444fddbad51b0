//! Every way in which a run ends: the exit code, and what is said about it. No ending may hang, and after each of them the
//! books of the memory service are right.

use std::ffi::OsString;
use std::time::Duration;

use rustix::process::Signal;
use tests::{Output, Report, Running, Scratch, Slat, elf, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

/// A `hello` that is told how to end, and where its report goes.
struct Hello {
    scratch: Scratch,
    args: Vec<OsString>,
}

impl Hello {
    fn new(cmdline: &str, sets: &[&str]) -> Hello {
        let scratch = Scratch::new();
        let config = scratch.hello("hello.toml", "");
        let mut args = vec!["run".into(), config.into(), "--json-report".into()];
        args.push(scratch.path().join("report.json").into());
        for set in sets.iter().copied().chain([&*format!("boot.cmdline={cmdline}")]) {
            args.extend(["--set".into(), set.into()]);
        }
        Hello { scratch, args }
    }

    fn run(&self) -> Output {
        SLAT.run(&self.args)
    }

    /// Starts it, and waits until it runs guest code.
    fn start(&self) -> Running {
        let mut command = SLAT.command(&self.args);
        command.stdin(std::process::Stdio::piped());
        let mut running = SLAT.start(command);
        running.wait_for("hello: command line");
        running
    }

    /// The report, which names the ending and has right books.
    fn report(&self, ending: &str, output: &Output) -> Report {
        let report = Report::read(&self.scratch.path().join("report.json"));
        assert!(!output.timed_out, "{output:?}");
        assert_eq!(report.text("ending"), ending, "{output:?}");
        assert_eq!(report.text("audit"), "clean", "{output:?}");
        report
    }
}

/// Asserts that a vCPU is reported in full: place, bytes, registers, on standard error and in the report.
fn assert_cpu_reported(output: &Output, report: &Report) {
    for part in ["error: ", "at rip 0x", "(vcpu 0, ring ", "), bytes ", "rax ", "rflags ", "cr3 "] {
        assert!(output.stderr.contains(part), "{part:?} is not said: {output:?}");
    }
    let rip = report.number("cpu.rip");
    assert!(output.stderr.contains(&format!("rip {rip:#x} ")), "{output:?}");
    let registers = report.at("cpu.registers").as_array().expect("registers are a list");
    assert!(registers.len() >= 18, "{registers:?}");
}

#[test]
fn the_exit_code_is_the_guests_verdict() {
    if !require_guests() {
        return;
    }
    for verdict in [0, 1, 7, 255] {
        let hello = Hello::new(&format!("exit={verdict}"), &[]);
        let output = hello.run();
        assert_eq!(output.code, Some(verdict), "{output:?}");
        assert!(output.stderr.ends_with(&format!("verdict {verdict}\n")), "{output:?}");
        assert!(!output.stderr.contains("error"), "{output:?}");
        hello.report("verdict", &output);
    }
}

/// With an interrupt controller the halt stays in the kernel, and has to be noticed from outside.
#[test]
fn a_halt_that_nothing_can_end_ends_the_run() {
    if !require_guests() {
        return;
    }
    for sets in [&["machine.irqchip=none"][..], &["machine.irqchip=kernel"]] {
        let hello = Hello::new("then=halt", sets);
        let output = hello.run();
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        hello.report("halted", &output);
    }
}

/// The other vCPUs, which nobody has started, do not keep the machine alive.
#[test]
fn a_halt_ends_a_machine_whose_other_vcpus_never_started() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("then=halt", &["machine.vcpus=4"]);
    let output = hello.run();
    assert_eq!(output.code, Some(0), "{output:?}");
    hello.report("halted", &output);
}

#[test]
fn a_reset_ends_the_run_well() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("then=reset", &[]);
    let output = hello.run();
    assert_eq!(output.code, Some(0), "{output:?}");
    hello.report("reset", &output);
}

/// A kernel that writes to a register of ACPI, as the FADT has it, and halts if nothing comes of that.
#[test]
fn a_kernel_powers_itself_off_or_resets_through_the_registers_of_acpi() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.write("x.toml", "[boot]\nkernel = \"kernel\"\n");
    let report = scratch.path().join("report.json");
    for (port, value, acpi, ending) in [
        // SLP_TYP 5 and SLP_EN in sleep control, then the reset register.
        (0x600_u16, 5 << 2 | 1 << 5, true, "powered-off"),
        (0x602, 1, true, "reset"),
        (0x600, 5 << 2 | 1 << 5, false, "halted"),
    ] {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al; cli; hlt
        let code = [0x66, 0xba, low, high, 0xb0, value, 0xee, 0xfa, 0xf4];
        scratch.write("kernel", elf(1 << 20, 4096, &code));
        let set = format!("machine.acpi={acpi}");
        let mut command = SLAT.command(["run"]);
        command.arg(&config).arg("--json-report").arg(&report).args(["--set", &set]);
        let output = SLAT.start(command).finish();
        assert_eq!(output.code, Some(0), "{output:?}");
        let report = Report::read(&report);
        assert_eq!((report.text("ending"), report.text("audit")), (ending, "clean"), "{output:?}");
    }
    let output = SLAT.run(["check".as_ref(), config.as_os_str()]);
    let acpi = output.stdout.lines().find(|line| line.trim_start().starts_with("acpi "));
    assert!(acpi.is_some_and(|line| line.contains("true")), "{output:?}");
}

#[test]
fn a_triple_fault_is_reported_with_the_vcpu() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("then=triple", &[]);
    let output = hello.run();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.starts_with("error: the guest met a triple fault at "), "{output:?}");
    assert_cpu_reported(&output, &hello.report("triple-fault", &output));
}

#[test]
fn a_jump_into_garbage_is_an_exception_that_the_guest_reports() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("then=jump", &[]);
    let output = hello.run();
    assert_eq!(output.code, Some(101), "{output:?}");
    assert!(output.stdout.contains("guest: exception "), "{output:?}");
    hello.report("verdict", &output);
}

#[test]
fn an_access_past_ram_is_reported_with_address_and_vcpu() {
    if !require_guests() {
        return;
    }
    for (cmdline, access) in [
        ("read=0x8000000", "read 1 bytes at guest-physical address 0x8000000"),
        ("read=0xc0000000", "read 1 bytes at guest-physical address 0xc0000000"),
        ("write=0x100000000", "wrote 1 bytes at guest-physical address 0x100000000"),
    ] {
        let hello = Hello::new(cmdline, &[]);
        let output = hello.run();
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.starts_with(&format!("error: the guest {access}")), "{output:?}");
        let report = hello.report("unclaimed-access", &output);
        assert_cpu_reported(&output, &report);
        let bytes = report.at("cpu.bytes").as_array().expect("bytes are a list");
        assert!(!bytes.is_empty(), "the instruction can be read: {output:?}");
    }
}

#[test]
fn an_access_past_ram_reads_ones_where_the_config_wants_it() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("read=0x8000000", &["machine.unclaimed=ignore"]);
    let output = hello.run();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.ends_with("hello: read 0x8000000: 0xff\n"), "{output:?}");
    let report = hello.report("verdict", &output);
    assert_eq!(report.number("unclaimed.memory"), 1);
    assert_eq!(report.text("unclaimed.first_addresses.0"), "0x8000000");
}

#[test]
fn a_value_that_the_guest_does_not_understand_is_verdict_2() {
    if !require_guests() {
        return;
    }
    let hello = Hello::new("then=dance", &[]);
    let output = hello.run();
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stdout.contains("exit, halt, reset, triple"), "{output:?}");
    hello.report("verdict", &output);
}

/// A guest in an endless loop makes no exits: only a kick gets it out.
#[test]
fn signals_end_a_guest_that_spins() {
    if !require_guests() {
        return;
    }
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for sets in [&["machine.vcpus=1"][..], &["machine.vcpus=2"]] {
            let hello = Hello::new("then=spin", sets);
            let running = hello.start();
            running.signal(signal);
            let output = running.finish();
            assert_eq!(output.code, Some(code), "{output:?}");
            assert!(output.took < Duration::from_secs(10), "{output:?}");
            hello.report("signal", &output);
        }
    }
}

/// SIGTERM while faults come by the thousand: whatever was under way is finished or undone.
#[test]
fn a_signal_in_the_middle_of_faults_leaves_the_books_right() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch
        .write("x.toml", "memory.size = \"256M\"\nboot.guest = \"smp\"\nmachine.vcpus = 2\n");
    for delay in [0, 3, 20, 60] {
        let report = scratch.path().join("report.json");
        let mut command = SLAT.command(["run"]);
        command.arg(&config).arg("--json-report").arg(&report);
        let mut running = SLAT.start(command);
        running.wait_for("smp: 2 cpus");
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::TERM);
        let output = running.finish();
        assert_eq!(output.code, Some(143), "{output:?}");
        assert_eq!(Report::read(&report).text("audit"), "clean", "{output:?}");
    }
}

/// A kernel of this code, run with `ring0`; its report.
fn ring0(code: &[u8], ring0: &str) -> (Output, Report) {
    let scratch = Scratch::new();
    let config = scratch.write("x.toml", "[boot]\nkernel = \"kernel\"\n");
    std::fs::write(scratch.path().join("kernel"), elf(0x10_0000, 0x1000, code)).unwrap();
    let report = scratch.path().join("report.json");
    let ring0 = format!("machine.ring0={ring0}");
    let args = [OsString::from("run"), config.into(), "--set".into(), ring0.into()];
    let more = ["--json-report".into(), report.clone().into(), "--profile".into()];
    let output = SLAT.run(args.into_iter().chain(more));
    (output, Report::read(&report))
}

/// POPCNT, CMPXCHG16B and ten thousand rounds of a loop in ring 0, whoever carries them out.
#[test]
fn ring_0_is_the_same_whoever_runs_it() {
    if !require_guests() {
        return;
    }
    let code = [
        &[0x48, 0x8d, 0x3d, 0xf9, 0x00, 0x00, 0x00][..], // lea rdi, [rip + 0xf9]: 0x100100
        &[0xb9, 0x10, 0x27, 0x00, 0x00],                 // mov ecx, 10000
        &[0xff, 0xc3],                                   // inc ebx
        &[0xff, 0xc9],                                   // dec ecx
        &[0x75, 0xfa],                                   // jnz: to inc
        &[0x31, 0xc0, 0x31, 0xd2],                       // xor eax, eax; xor edx, edx
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],                 // lock cmpxchg16b [rdi]
        &[0xf3, 0x0f, 0xb8, 0x07],                       // popcnt eax, [rdi]: of 10000, five
        &[0xe6, 0xf4, 0xfa, 0xf4],                       // out 0xf4, al; cli; hlt
    ]
    .concat();
    for who in ["kvm", "monitor"] {
        let (output, report) = ring0(&code, who);
        assert_eq!((output.code, report.text("ending")), (Some(5), "verdict"), "{who}: {output:?}");
        assert!(output.stderr.contains("profile: time by place"), "{output:?}");
        let interpreted = report.number("emulated.interpreted");
        if who == "kvm" {
            assert_eq!(interpreted, 0, "{output:?}");
        } else {
            assert!(interpreted > 0, "{output:?}");
        }
    }
}

/// An instruction that neither KVM nor the monitor knows is told with its bytes, its name and its place; a processor that runs
/// ring 0 just carries it out.
#[test]
fn an_instruction_that_nobody_knows_is_reported() {
    if !require_guests() {
        return;
    }
    let code = [
        &[0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x00, 0x02, 0x0f, 0x22, 0xe0][..], // CR4.OSFXSR
        &[0x66, 0x44, 0x0f, 0x6e, 0xf9],                                   // movd xmm15, ecx
        &[0xb0, 0x07, 0xe6, 0xf4, 0xfa, 0xf4],                             // verdict 7
    ]
    .concat();
    for who in ["kvm", "monitor"] {
        let (output, report) = ring0(&code, who);
        if report.text("ending") == "verdict" {
            assert_eq!(output.code, Some(7), "{output:?}");
            continue;
        }
        assert_eq!((output.code, report.text("ending")), (Some(1), "kvm-error"), "{output:?}");
        assert!(output.stderr.contains("KVM cannot emulate the instruction (66 44 0f 6e f9"));
        assert!(
            output.stderr.contains("this monitor does not carry out movd either"),
            "{output:?}"
        );
        assert_cpu_reported(&output, &report);
        assert_eq!(report.number("cpu.rip"), 0x10_000a, "{output:?}");
    }
}
