//! The map as a picture: title, shares, squares, legend. Plain SVG, written by hand: a plotting library has axes for data,
//! and this picture has none.

use std::fmt::{self, Write};

use super::counts::{Counts, Kind};
use super::document::{Document, State};
use super::squares::Squares;
use super::style::{INK, MARGIN, PALE_INK, SANS, colour, escape, letter};
use super::{PAGE, human, percent};

/// Of the bar that shows the shares.
const BAR: usize = 12;
/// A line of the legend.
const LEGEND_LINE: usize = 26;

/// The map as an SVG file.
pub fn picture(document: &Document) -> String {
    let squares = Squares::new(document);
    let mut body = String::new();
    let height = Picture { document, counts: document.counts(), squares: &squares }
        .write(&mut body)
        .expect("a string takes everything");
    let width = squares.width();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{SANS}\" fill=\"{INK}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

struct Picture<'a> {
    document: &'a Document,
    counts: Counts,
    squares: &'a Squares,
}

impl Picture<'_> {
    /// Writes everything from top to bottom; where it ends.
    fn write(&self, out: &mut String) -> Result<usize, fmt::Error> {
        self.title(out)?;
        self.shares(out, 104)?;
        let below = self.squares.write(out, 150)?;
        self.legend(out, below + 34)
    }

    fn title(&self, out: &mut String) -> fmt::Result {
        let name = escape(self.document.name());
        let state = match self.document.state {
            State::Running => "running",
            State::Finished => "finished",
        };
        let all = self.counts.pages;
        writeln!(out, "<title>Memory of {name}</title>")?;
        writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"52\" font-size=\"24\" font-weight=\"600\">{name}</text>"
        )?;
        writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"80\" font-size=\"14\" fill=\"{PALE_INK}\">{} of RAM, {} resident ({}) · {state} · {}</text>",
            human(all * PAGE),
            human(self.counts.resident() * PAGE),
            percent(self.counts.resident(), all),
            utc(self.document.taken_unix),
        )
    }

    /// One bar for all RAM, each kind as wide as its share.
    fn shares(&self, out: &mut String, y: usize) -> fmt::Result {
        let width = (self.squares.width() - 2 * MARGIN) as f64;
        let mut x = MARGIN as f64;
        for kind in self.kinds() {
            let part = width * self.counts.of(kind) as f64 / self.counts.pages.max(1) as f64;
            writeln!(
                out,
                "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{part:.2}\" height=\"{BAR}\" fill=\"{}\"/>",
                colour(kind, 4)
            )?;
            x += part;
        }
        Ok(())
    }

    /// The kinds that there are, in two columns; where it ends.
    fn legend(&self, out: &mut String, top: usize) -> Result<usize, fmt::Error> {
        let kinds: Vec<Kind> = self.kinds().collect();
        let lines = kinds.len().div_ceil(2);
        let half = (self.squares.width() - 2 * MARGIN) / 2;
        for (index, &kind) in kinds.iter().enumerate() {
            let x = MARGIN + index / lines * half;
            let y = top + index % lines * LEGEND_LINE;
            // What is shown in shades has its shades in the legend.
            let fills = if kind == Kind::Small { 1..=4 } else { 4..=4 };
            let nr_swatches = fills.clone().count();
            for (at, fill) in fills.enumerate() {
                let width = 52 / nr_swatches;
                writeln!(
                    out,
                    "<rect x=\"{}\" y=\"{}\" width=\"{width}\" height=\"14\" fill=\"{}\" {}/>",
                    x + at * width,
                    y - 11,
                    colour(kind, fill),
                    if kind == Kind::Untouched { "stroke=\"#d0d7de\"" } else { "" },
                )?;
            }
            if let Some(letter) = letter(kind) {
                writeln!(
                    out,
                    "<text x=\"{}\" y=\"{y}\" font-size=\"12\" font-weight=\"700\" fill=\"#ffffff\" \
                     text-anchor=\"middle\">{letter}</text>",
                    x + 26
                )?;
            }
            let share = percent(self.counts.of(kind), self.counts.pages);
            writeln!(
                out,
                "<text x=\"{}\" y=\"{y}\" font-size=\"13\">{} <tspan dx=\"6\" fill=\"{PALE_INK}\">{} · {}</tspan></text>",
                x + 64,
                kind.name(),
                human(self.counts.bytes_of(kind)),
                escape(&share),
            )?;
        }
        let y = top + lines * LEGEND_LINE + 12;
        let grid = &self.squares.grid;
        let square = match grid.per_cell {
            1 => "A square is a block of 2 MiB".to_owned(),
            many => format!(
                "A square is {many} blocks of 2 MiB ({}) and shows the most important kind in them",
                human(grid.cell_bytes())
            ),
        };
        writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"12\" fill=\"{PALE_INK}\">{square}; a row is {}.{}{}</text>",
            human(grid.row_bytes()),
            if self.counts.of(Kind::Small) > 0 {
                " The deeper the colour of 4 KiB pages, the fuller the block."
            } else {
                ""
            },
            match self.counts.pinned {
                0 => String::new(),
                pinned => format!(" Devices have {} pinned.", human(pinned * PAGE)),
            },
        )?;
        Ok(y + MARGIN - 6)
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|&kind| self.counts.of(kind) > 0)
    }
}

/// Seconds since 1970 as date and time. Days to dates as in Howard Hinnant's `civil_from_days`: years start in March, so
/// that the leap day is the last one.
fn utc(seconds: u64) -> String {
    // Up to the year 9999: what a file says may be anything.
    let seconds = seconds.min(253_402_300_799);
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year}-{month:02}-{date:02} {:02}:{:02} UTC", time / 3600, time / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
            (1_767_225_600, "2026-01-01 00:00 UTC"),
            (u64::MAX, "9999-12-31 23:59 UTC"),
        ] {
            assert_eq!(utc(seconds), shown);
        }
    }

    #[test]
    fn names_cannot_break_out() {
        let mut document = samples::document(samples::blocks(0, 3));
        document.machine = "x/<a href=\"&\">\u{1b}".into();
        let picture = picture(&document);
        assert!(picture.contains("&lt;a href=&quot;&amp;&quot;&gt;\u{fffd}"), "{picture}");
    }

    #[test]
    fn shared_pages_and_those_of_images_have_colours_and_are_told_at_their_block() {
        let mut blocks = samples::blocks(0, 3);
        (blocks[0].small, blocks[0].shared) = (10, 8);
        (blocks[1].huge, blocks[1].image) = (512, 512);
        let picture = picture(&samples::document(blocks));
        for says in [
            "8 KiB in 4 KiB pages, 32 KiB in shared 4 KiB pages, ",
            "<title>0x200000: 2 MiB of an image</title>",
            ">4 KiB pages, shared <tspan",
            colour(Kind::Shared, 4),
            colour(Kind::Image, 4),
        ] {
            assert!(picture.contains(says), "{says:?} is not in\n{picture}");
        }
    }

    #[test]
    fn pins_are_told_below_and_at_their_block() {
        let mut blocks = samples::blocks(0, 3);
        (blocks[1].small, blocks[1].pinned) = (8, 2);
        let picture = picture(&samples::document(blocks));
        assert!(picture.contains(" Devices have 8 KiB pinned.</text>"), "{picture}");
        assert!(picture.contains("untouched, 8 KiB of it pinned by devices</title>"), "{picture}");
    }

    #[test]
    fn every_block_has_a_square_that_tells_its_pages() {
        let document = samples::document(samples::blocks(0, 40));
        let picture = picture(&document);
        let squares =
            picture.lines().filter(|line| line.contains("<rect") && line.contains("<title>"));
        assert_eq!(squares.count(), 40);
        assert!(picture.contains("<title>0x4e00000: 2 MiB untouched</title>"), "{picture}");
    }
}
