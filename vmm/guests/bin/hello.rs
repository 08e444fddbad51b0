//! `hello`: says who it is, and ends in the way it was asked to. The smallest test of a monitor.
#![no_std]
#![no_main]

use rt::boot_params::{Boot, Range};
use rt::cmdline::BadValue;
use rt::{exit, paging, print, println, serial};

rt::main!(main);

#[derive(Clone, Copy)]
enum Then {
    Exit,
    Halt,
    Reset,
    TripleFault,
    Jump,
    Echo,
    Spin,
}

fn main(boot: &Boot) -> u8 {
    // Before anything is looked at: the time to this byte is what `slat bench boot` measures.
    println!("hello from a slat guest");
    let mib = boot.ram().map(Range::len).sum::<u64>() >> 20;
    println!("hello: {mib} MiB of RAM in {} ranges", boot.ram().count());
    println!("hello: command line \"{}\"", boot.cmdline().0);
    run(boot).unwrap_or_else(|bad| {
        println!("hello: {bad}");
        exit::BAD_VALUE
    })
}

fn run(boot: &Boot) -> Result<u8, BadValue<'static>> {
    let line = boot.cmdline();
    let verdict = line.number_in("exit", 0, 255, 0)? as u8;
    let then = line.choice(
        "then",
        &[
            ("exit", Then::Exit),
            ("halt", Then::Halt),
            ("reset", Then::Reset),
            ("triple", Then::TripleFault),
            ("jump", Then::Jump),
            ("echo", Then::Echo),
            ("spin", Then::Spin),
        ],
        Then::Exit,
        "exit, halt, reset, triple, jump, echo or spin",
    )?;
    if let Some(at) = line.number("read")? {
        // Said first: the read may be the last thing that happens.
        print!("hello: read {at:#x}: ");
        println!("{:#04x}", read(at));
    }
    if let Some(at) = line.number("write")? {
        print!("hello: write {at:#x}: ");
        write(at, 0x5a);
        println!("{:#04x}", read(at));
    }
    match then {
        Then::Exit => Ok(verdict),
        Then::Halt => exit::halt(),
        Then::Reset => exit::reset(),
        Then::TripleFault => exit::triple_fault(),
        Then::Jump => exit::jump_to_garbage(),
        Then::Echo => {
            echo();
            Ok(verdict)
        }
        Then::Spin => loop {
            core::hint::spin_loop();
        },
    }
}

fn echo() {
    loop {
        match serial::receive() {
            serial::EOT => return,
            byte => serial::send(byte),
        }
    }
}

fn read(at: u64) -> u8 {
    reach(at);
    // SAFETY: mapped; what a read does there, to whatever is there, is what the operator asked for.
    unsafe { (at as *const u8).read_volatile() }
}

fn write(at: u64, byte: u8) {
    reach(at);
    // SAFETY: mapped; the operator chose the address, and the guest's own image is as good a target as any.
    unsafe { (at as *mut u8).write_volatile(byte) }
}

fn reach(at: u64) {
    paging::reach(Range { start: at, end: at.saturating_add(1) });
}
