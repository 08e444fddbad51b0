//! `console`: talks to a virtio console. It writes lines there, answers each line that it reads with the same in capitals, and
//! ends after the line `bye`. What it is told of the console's size goes to the serial port.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;

use rt::boot_params::Boot;
use rt::println;
use rt::tsc::{Deadline, Frequency};
use rt::virtio::{Device, Devices, Failure, Memory};
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_drivers::transport::DeviceType;

rt::main!(main);

/// Milliseconds between two looks at the size: each costs some exits to the monitor.
const LOOK: u64 = 20;
/// Bytes of a line, at most: what is longer is answered in parts.
const LONGEST: usize = 4096;
/// ASCII end of transmission, Ctrl-D: ends the guest as `bye` does.
const EOT: u8 = 4;

type Driver = VirtIOConsole<Memory, Device>;

struct Console {
    driver: Driver,
    frequency: Frequency,
    /// What the device says, none if it does not tell.
    size: Option<Size>,
    /// How often it changed.
    resized: u64,
    next_look: Deadline,
    /// The line that is being read.
    line: Vec<u8>,
    lines: u64,
    read: u64,
    written: u64,
}

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("console: {failure}");
        failure.verdict()
    })
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let lines = line.number_in("console.lines", 0, u64::MAX, 1)?;
    let index = line.number_in("console.index", 0, u64::MAX, 0)? as usize;
    let frequency = Frequency::find(line)?;
    let device = devices.take(DeviceType::Console, index)?;
    let driver = Driver::new(device)
        .map_err(Failure::at("setting the device up, with 2 descriptors a queue"))?;
    let mut console = Console {
        driver,
        frequency,
        size: None,
        resized: 0,
        next_look: frequency.after(LOOK),
        line: Vec::new(),
        lines: 0,
        read: 0,
        written: 0,
    };
    console.size = console.look()?;
    match console.size {
        Some(size) => println!("console: {size}"),
        None => println!("console: of no size that the device would tell"),
    }
    for number in 1..=lines {
        console.write(format!("line {number} of {lines} from a slat guest\n").as_bytes())?;
    }
    while !console.turn()? {}
    let Console { size, resized, lines: answered, read, written, .. } = console;
    let Size { columns, rows } = size.unwrap_or(Size { columns: 0, rows: 0 });
    // The last line is for programs: keys are only ever added.
    println!(
        "console: lines={answered} read={read} written={written} columns={columns} rows={rows} resized={resized}"
    );
    Ok(0)
}

impl Console {
    /// Reads what there is and looks at the size; whether the end has come.
    fn turn(&mut self) -> Result<bool, Failure> {
        if self.next_look.passed() {
            self.next_look = self.frequency.after(LOOK);
            let size = self.look()?;
            if let Some(new) = size
                && size != self.size
            {
                println!("console: now {new}");
                self.size = size;
                self.resized += 1;
            }
        }
        let Some(byte) = self.driver.recv(true).map_err(Failure::at("read"))? else {
            core::hint::spin_loop();
            return Ok(false);
        };
        self.read += 1;
        match byte {
            EOT => return Ok(true),
            // What a terminal in raw mode sends for the enter key.
            b'\n' | b'\r' => {}
            _ => {
                self.line.push(byte);
                if self.line.len() < LONGEST {
                    return Ok(false);
                }
            }
        }
        let mut line = core::mem::take(&mut self.line);
        let last = line == b"bye";
        line.make_ascii_uppercase();
        line.push(b'\n');
        self.write(&line)?;
        self.lines += 1;
        Ok(last)
    }

    fn look(&self) -> Result<Option<Size>, Failure> {
        self.driver.size().map_err(Failure::at("size"))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.driver.send_bytes(bytes).map_err(Failure::at("write"))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
