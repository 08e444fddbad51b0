//! The map for a terminal: a character a block.

use std::fmt::{self, Write};

use super::counts::{Counts, Kind};
use super::document::{Document, State};
use super::grid::Grid;
use super::{PAGE, human, percent};

/// Blocks in a row: 128 MiB.
const COLUMNS: usize = 64;

/// Rows that still fit a screen. Longer maps have several blocks to a character.
const ROWS: usize = 40;

/// Between the marks of the ruler, in characters.
const TICK: usize = 16;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Shades beyond ASCII.
    pub unicode: bool,
    /// Colours.
    pub colour: bool,
}

impl Style {
    /// ASCII without colours.
    pub const PLAIN: Style = Style { unicode: false, colour: false };

    /// What the variables of the environment say about a terminal, or about what is none. `NO_COLOR` is that of
    /// no-color.org: set and not empty.
    pub fn detect(is_terminal: bool, var: impl Fn(&str) -> Option<String>) -> Style {
        let set = |name| var(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Style {
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            colour: is_terminal && !dumb && set("NO_COLOR").is_none(),
        }
    }

    /// The mark of some pages.
    fn mark(self, kind: Kind, fill: usize) -> char {
        let shades = if self.unicode { ['░', '▒', '▓', '█'] } else { ['1', '2', '3', '4'] };
        match kind {
            Kind::Untouched if self.unicode => '·',
            Kind::Untouched => '.',
            Kind::Small => shades[fill - 1],
            Kind::Scattered => 's',
            Kind::Shared => '=',
            Kind::Image => 'i',
            Kind::Huge => 'H',
            Kind::Giant => 'G',
            Kind::Missing => 'm',
            Kind::Guard => 'g',
            Kind::Poison => 'x',
            Kind::Returned => '-',
        }
    }

    /// What stands for a kind in the legend.
    fn key(self, kind: Kind) -> String {
        match kind {
            Kind::Small => (1..=4).map(|fill| self.mark(kind, fill)).collect(),
            _ => self.mark(kind, 1).into(),
        }
    }

    /// `text` in the colour of `kind`.
    fn paint(self, kind: Kind, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", ansi(kind)) } else { text.to_owned() }
    }
}

/// The colour on a terminal: of the sixteen, which follow the reader's own theme.
fn ansi(kind: Kind) -> &'static str {
    match kind {
        Kind::Untouched => "90",
        Kind::Small => "33",
        Kind::Scattered => "1;93",
        Kind::Shared => "95",
        Kind::Image => "36",
        Kind::Huge => "32",
        Kind::Giant => "1;34",
        Kind::Missing => "35",
        Kind::Guard => "1;36",
        Kind::Poison => "1;31",
        Kind::Returned => "37",
    }
}

/// The map as text.
pub fn text(document: &Document, style: Style) -> String {
    let mut out = String::new();
    Report { document, style, grid: &Grid::new(document, COLUMNS, ROWS) }
        .write(&mut out)
        .expect("a string takes everything");
    out
}

struct Report<'a> {
    document: &'a Document,
    style: Style,
    grid: &'a Grid,
}

impl Report<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        let counts = self.document.counts();
        let state = match self.document.state {
            State::Running => "running",
            State::Finished => "finished",
        };
        let machine: String =
            self.document.machine.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        writeln!(out, "{machine}: {state}, {} of RAM", human(counts.pages * PAGE))?;
        let row = human(self.grid.row_bytes());
        match self.grid.per_cell {
            1 => writeln!(out, "a character is a block of 2 MiB, a row {row}\n")?,
            many => writeln!(
                out,
                "a character is {many} blocks of 2 MiB, a row {row};\n\
                 the most important kind of the blocks is shown\n"
            )?,
        }
        self.rows(out)?;
        self.legend(out, &counts)
    }

    fn rows(&self, out: &mut String) -> fmt::Result {
        let last = self.grid.rows.last().map_or(0, |row| row.gpa);
        let digits = format!("{last:x}").len().max(8);
        let widest = self.grid.rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let ruler: String = (0..widest)
            .step_by(TICK)
            .map(|column| format!("+{:<1$}", self.offset(column), TICK - 1))
            .collect();
        writeln!(out, "{}", format!("{:1$}{ruler}", "", digits + 4).trim_end())?;
        for (index, row) in self.grid.rows.iter().enumerate() {
            if self.grid.has_gap_before(index) {
                writeln!(out, "{:1$}(no RAM)", "", digits + 4)?;
            }
            write!(out, "0x{:0digits$x}  ", row.gpa)?;
            let marks = row.cells.iter().map(|cell| (cell.counts.kind(), cell.counts.fill()));
            let marks: Vec<(Option<Kind>, usize)> = marks.collect();
            // One change of colour for a run of the same kind.
            for run in marks.chunk_by(|a, b| a.0 == b.0) {
                let Some(kind) = run[0].0 else {
                    write!(out, "{:1$}", "", run.len())?;
                    continue;
                };
                let text: String =
                    run.iter().map(|&(_, fill)| self.style.mark(kind, fill)).collect();
                out.push_str(&self.style.paint(kind, &text));
            }
            out.push('\n');
        }
        Ok(())
    }

    fn offset(&self, column: usize) -> String {
        let bytes = column as u64 * self.grid.cell_bytes();
        human(bytes).replace(" bytes", "").replace("iB", "").replace(' ', "")
    }

    /// Only of what there is, with how much of it.
    fn legend(&self, out: &mut String, counts: &Counts) -> fmt::Result {
        writeln!(out)?;
        for kind in Kind::ALL.into_iter().filter(|&kind| counts.of(kind) > 0) {
            let key = format!("{:<4}", self.style.key(kind));
            let name = match kind {
                Kind::Small => "4 KiB pages, by how full",
                _ => kind.name(),
            };
            let (bytes, pages) = (human(counts.bytes_of(kind)), counts.of(kind));
            let share = percent(pages, counts.pages);
            writeln!(out, "  {}  {name:<25}{bytes:>10}{share:>10}", self.style.paint(kind, &key))?;
        }
        if counts.pinned > 0 {
            let (bytes, share) =
                (human(counts.pinned * PAGE), percent(counts.pinned, counts.pages));
            writeln!(out, "        {:<25}{bytes:>10}{share:>10}", "pinned by devices")?;
        }
        let (resident, all) = (counts.resident(), counts.pages);
        let share = percent(resident, all);
        writeln!(
            out,
            "\ntotal: {} of {} resident ({share})",
            human(resident * PAGE),
            human(all * PAGE)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn small_map() -> Document {
        let mut blocks = samples::blocks(0, 80);
        blocks[0].small = 10;
        blocks[1].small = 512;
        blocks[2].huge = 512;
        blocks[70].guard = 1;
        samples::document(blocks)
    }

    #[test]
    fn a_block_is_a_character_and_a_row_128_mib() {
        let shown = text(&small_map(), Style::PLAIN);
        let row = format!("0x00000000  14H{}\n", ".".repeat(61));
        assert!(shown.contains(&row), "{shown}");
        assert!(shown.contains("\n0x08000000  ......g.........\n"), "{shown}");
        assert!(
            shown.contains("+0              +32M            +64M            +96M\n"),
            "{shown}"
        );
        assert!(shown.contains("\ntotal: 4.0 MiB of 160 MiB resident (2.5 %)"), "{shown}");
        assert!(shown.is_ascii() && !shown.contains('\x1b'), "{shown}");
    }

    #[test]
    fn shared_pages_and_those_of_images_have_marks_and_lines() {
        let mut blocks = samples::blocks(0, 64);
        (blocks[0].small, blocks[0].shared) = (10, 8);
        (blocks[1].huge, blocks[1].image) = (512, 512);
        let shown = text(&samples::document(blocks), Style::PLAIN);
        assert!(shown.contains("0x00000000  =i..."), "{shown}");
        for line in [
            "  1234  4 KiB pages, by how full      8 KiB   < 0.1 %",
            "  =     4 KiB pages, shared          32 KiB   < 0.1 %",
            "  i     of an image                   2 MiB     1.6 %",
        ] {
            assert!(shown.contains(line), "{line:?} is not in\n{shown}");
        }
    }

    #[test]
    fn pins_have_a_line_where_there_are_any() {
        assert!(!text(&small_map(), Style::PLAIN).contains("pinned"));
        let mut blocks = samples::blocks(0, 80);
        blocks[2].huge = 512;
        blocks[2].pinned = 2;
        let shown = text(&samples::document(blocks), Style::PLAIN);
        let line = "\n        pinned by devices             8 KiB   < 0.1 %\n";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn every_line_fits_80_columns_and_the_screen() {
        for style in [Style::PLAIN, Style { unicode: true, colour: false }] {
            let shown = text(&samples::mixed(), style);
            for line in shown.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            assert!(shown.lines().count() <= 60, "{shown}");
            assert!(shown.contains("(no RAM)"), "{shown}");
        }
    }

    #[test]
    fn large_guests_have_several_blocks_to_a_character_and_say_so() {
        let shown = text(&samples::document(samples::blocks(0, 64 * 64)), Style::PLAIN);
        assert!(shown.contains("a character is 2 blocks of 2 MiB, a row 256 MiB"), "{shown}");
        assert!(shown.contains("\n0x0f0000000  ......"), "{shown}");
    }

    #[test]
    fn colours_and_shades_are_for_terminals_that_have_them() {
        let detect = |terminal, vars: &[(&str, &str)]| {
            let found = |name: &str| vars.iter().find(|(key, _)| *key == name);
            Style::detect(terminal, |name| found(name).map(|(_, value)| (*value).to_owned()))
        };
        let term = ("TERM", "xterm");
        assert_eq!(detect(true, &[]), Style::PLAIN);
        assert_eq!(detect(true, &[term]), Style { unicode: false, colour: true });
        assert_eq!(
            detect(false, &[term, ("LANG", "C.UTF-8")]),
            Style { unicode: true, colour: false }
        );
        assert!(!detect(true, &[term, ("LC_ALL", "C"), ("LANG", "C.UTF-8")]).unicode);
        assert!(detect(true, &[term, ("LC_ALL", ""), ("LANG", "de_DE.utf8")]).unicode);
        for (name, value, colour) in
            [("NO_COLOR", "1", false), ("NO_COLOR", "", true), ("TERM", "dumb", false)]
        {
            assert_eq!(detect(true, &[(name, value), term]).colour, colour, "{name}={value}");
        }
        let shown = text(&small_map(), Style { unicode: true, colour: true });
        assert!(shown.contains("\x1b[33m░█\x1b[0m\x1b[32mH\x1b[0m\x1b[90m·"), "{shown}");
    }

    #[test]
    fn a_machine_without_blocks_has_a_map_too() {
        assert!(text(&samples::document(Vec::new()), Style::PLAIN).contains("total: 0 bytes"));
    }
}
