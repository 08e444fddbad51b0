use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

const DATA: u64 = 0;
const IER: u64 = 1;
const MCR: u64 = 4;
const LSR: u64 = 5;
const IER_RECEIVED: u8 = 1;
const LSR_DATA_READY: u8 = 1;
const MCR_LOOPBACK: u8 = 1 << 4;

#[derive(Clone, Default)]
struct Edges(Arc<AtomicU64>);

impl Trigger for Edges {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct DeadLine;

impl Trigger for DeadLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Err(io::Error::other("no eventfd"))
    }
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails with the given kinds, one a write, then succeeds.
struct Faulty(Vec<ErrorKind>);

impl Write for Faulty {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.pop().map_or(Ok(data.len()), |kind| Err(kind.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(serial: &mut Serial, register: u64) -> u8 {
    let mut data = [0xff];
    serial.read(register, &mut data);
    data[0]
}

#[test]
fn every_byte_goes_out_at_once_and_the_first_one_is_timed() {
    let screen = Screen::default();
    let mut serial = Serial::new(Edges::default(), screen.clone());
    assert_eq!(serial.output_stats(), OutputStats::default());

    let before = Instant::now();
    serial.write(DATA, b">");
    assert_eq!(*screen.0.lock().unwrap(), b">");
    let first = serial.output_stats().first_byte.unwrap();
    assert!(before <= first && first <= Instant::now());

    serial.write(DATA, b" ");
    assert_eq!(serial.output_stats().bytes, 2);
    assert_eq!(serial.output_stats().first_byte, Some(first));
}

#[test]
fn a_closed_pipe_is_reported_once_and_costs_the_guest_nothing() {
    let mut serial = Serial::new(Edges::default(), Faulty(vec![ErrorKind::BrokenPipe]));
    for _ in 0..3 {
        assert_eq!(serial.write(DATA, b"x"), None);
    }
    let text = serial.take_error().unwrap().to_string();
    assert!(text.contains("output failed"), "{text}");
    assert!(serial.take_error().is_none());
    serial.write(DATA, b"x");
    assert!(serial.take_error().is_none());
    assert_eq!(serial.output_stats().lost, 4);
    assert_eq!(serial.output_stats().bytes, 0);
}

#[test]
fn a_sink_that_would_block_loses_that_byte_only() {
    let mut serial = Serial::new(Edges::default(), Faulty(vec![ErrorKind::WouldBlock]));
    serial.write(DATA, b"x");
    serial.write(DATA, b"y");
    let stats = serial.output_stats();
    assert_eq!((stats.bytes, stats.lost), (1, 1));
    assert!(serial.take_error().is_none());
}

#[test]
fn input_raises_the_line_and_is_read_in_order() {
    let edges = Edges::default();
    let mut serial = Serial::new(edges.clone(), io::sink());
    serial.write(IER, &[IER_RECEIVED]);
    assert_eq!(serial.enqueue(b"ab"), 2);
    assert_eq!(edges.0.load(Ordering::Relaxed), 1);
    assert_eq!(read(&mut serial, LSR) & LSR_DATA_READY, LSR_DATA_READY);
    assert_eq!(read(&mut serial, DATA), b'a');
    assert_eq!(read(&mut serial, DATA), b'b');
    assert_eq!(read(&mut serial, LSR) & LSR_DATA_READY, 0);
}

#[test]
fn a_full_fifo_takes_nothing_and_drops_nothing() {
    let mut serial = Serial::new(Edges::default(), io::sink());
    let capacity = serial.fifo_capacity();
    let input: Vec<u8> = (0..=255).collect();
    assert_eq!(serial.enqueue(&input), capacity);
    assert_eq!(serial.fifo_capacity(), 0);
    assert_eq!(serial.enqueue(&input[capacity..]), 0);
    assert_eq!(read(&mut serial, DATA), 0);
    assert_eq!(serial.enqueue(&input[capacity..]), 1);
    for byte in &input[1..=capacity] {
        assert_eq!(read(&mut serial, DATA), *byte);
    }
}

#[test]
fn in_loopback_input_is_left_to_the_caller() {
    let mut serial = Serial::new(Edges::default(), io::sink());
    serial.write(MCR, &[MCR_LOOPBACK]);
    assert_eq!(serial.enqueue(b"x"), 0);
    serial.write(DATA, b"l");
    assert_eq!(read(&mut serial, DATA), b'l');
    assert_eq!(serial.output_stats().bytes, 0);
}

#[test]
fn an_interrupt_that_cannot_be_raised_is_reported_and_the_input_kept() {
    let mut serial = Serial::new(DeadLine, io::sink());
    serial.write(IER, &[IER_RECEIVED]);
    assert_eq!(serial.enqueue(b"ab"), 2);
    assert!(matches!(serial.take_error(), Some(SerialError::Interrupt(_))));
    assert_eq!(read(&mut serial, DATA), b'a');
}

#[test]
fn a_wide_access_reaches_successive_registers() {
    let mut serial = Serial::new(Edges::default(), io::sink());
    let mut data = [0; 2];
    serial.write(IER, &[0x05]);
    serial.read(DATA, &mut data);
    assert_eq!(data[1], 0x05);
}
