//! The squares of the picture, with their addresses beside them.

use std::fmt::{self, Write};

use super::counts::{Counts, Kind};
use super::document::Document;
use super::grid::{Cell, Grid};
use super::style::{LABELS, MARGIN, MONO, PALE_INK, colour, escape, letter};
use super::{PAGE, human};

/// Where addresses are left out.
const GAP: usize = 22;

/// The squares of a map.
pub(super) struct Squares {
    pub(super) grid: Grid,
    /// From a square to its neighbour.
    pitch: usize,
}

impl Squares {
    pub(super) fn new(document: &Document) -> Squares {
        let (grid, pitch) = fitting(document);
        Squares { grid, pitch }
    }

    /// Of the whole picture.
    pub(super) fn width(&self) -> usize {
        2 * MARGIN + LABELS + self.grid.columns * self.pitch
    }

    /// Writes ruler, addresses and squares from `top` on; where they end.
    pub(super) fn write(&self, out: &mut String, top: usize) -> Result<usize, fmt::Error> {
        let left = MARGIN + LABELS;
        for column in (0..self.grid.columns).step_by(self.grid.columns / 4) {
            writeln!(
                out,
                "<text x=\"{}\" y=\"{top}\" font-size=\"11\" fill=\"{PALE_INK}\">+{}</text>",
                left + column * self.pitch,
                human(column as u64 * self.grid.cell_bytes()).replace("0 bytes", "0"),
            )?;
        }
        let mut y = top + 8;
        for (index, row) in self.grid.rows.iter().enumerate() {
            if self.grid.has_gap_before(index) {
                writeln!(
                    out,
                    "<text x=\"{left}\" y=\"{}\" font-size=\"11\" fill=\"{PALE_INK}\">no RAM</text>",
                    y + GAP - 8
                )?;
                y += GAP;
            }
            writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"{PALE_INK}\" font-family=\"{MONO}\" \
                 text-anchor=\"end\">{:#x}</text>",
                left - 10,
                y + self.pitch / 2 + 3,
                row.gpa
            )?;
            for (column, cell) in row.cells.iter().enumerate() {
                self.square(out, left + column * self.pitch, y, cell)?;
            }
            y += self.pitch;
        }
        Ok(y)
    }

    fn square(&self, out: &mut String, x: usize, y: usize, cell: &Cell) -> fmt::Result {
        let Some(kind) = cell.counts.kind() else { return Ok(()) };
        let side = self.pitch - if self.pitch > 20 { 3 } else { 2 };
        let told = escape(&tell(&cell.counts));
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" rx=\"{}\" fill=\"{}\"><title>{:#x}: {told}</title></rect>",
            if self.pitch > 20 { 3 } else { 2 },
            colour(kind, cell.counts.fill()),
            cell.gpa,
        )?;
        if let Some(letter) = letter(kind) {
            let size = if self.pitch > 20 { 14 } else { 11 };
            writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" font-size=\"{size}\" font-weight=\"700\" fill=\"#ffffff\" \
                 text-anchor=\"middle\" pointer-events=\"none\">{letter}</text>",
                x + side / 2,
                y + side / 2 + size / 3,
            )?;
        }
        Ok(())
    }
}

/// What a square says to who points at it.
fn tell(counts: &Counts) -> String {
    let kinds = Kind::ALL.into_iter().filter(|&kind| counts.of(kind) > 0);
    let mut parts: Vec<String> = kinds
        .map(|kind| {
            let name = match kind {
                Kind::Small => "in 4 KiB pages",
                Kind::Scattered => "in scattered 4 KiB pages",
                Kind::Shared => "in shared 4 KiB pages",
                Kind::Huge => "in 2 MiB pages",
                Kind::Giant => "in 1 GiB pages",
                _ => kind.name(),
            };
            format!("{} {name}", human(counts.of(kind) * PAGE))
        })
        .collect();
    if counts.pinned > 0 {
        parts.push(format!("{} of it pinned by devices", human(counts.pinned * PAGE)));
    }
    parts.join(", ")
}

/// The grid that a picture of this map shows: squares as large as there is room for.
fn fitting(document: &Document) -> (Grid, usize) {
    let (columns, pitch) = match document.blocks.len() {
        0..=64 => (16, 40),
        65..=512 => (32, 28),
        _ => (64, 15),
    };
    (Grid::new(document, columns, 64), pitch)
}
