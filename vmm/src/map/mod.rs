//! A guest's memory to look at: by block, as JSON, as text and as a picture.
//!
//! ```text
//!   document.rs   what `slat run --memory-map` writes and the control socket answers: versioned JSON
//!   counts.rs     pages by kind, and which kind a block is shown as
//!   grid.rs       blocks in rows by guest-physical address, several to a cell when there are many
//!   text.rs       the grid for a terminal            svg.rs, squares.rs   the grid as a picture
//! ```
//!
//! Nothing here needs a machine: a map is looked at as well after its machine has ended, and elsewhere.

mod counts;
mod document;
mod grid;
mod squares;
mod style;
mod svg;
mod text;

pub use counts::{Counts, Kind};
pub use document::{Document, MapError, State, Totals, VERSION};
pub use grid::{Cell, Grid, Row};
pub use svg::picture;
pub use text::{Style, text};

/// Bytes of a page, the unit that blocks are counted in.
const PAGE: u64 = 4 << 10;

/// Bytes of a block, the unit that is shown.
const BLOCK: u64 = 2 << 20;

/// Bytes as a person reads them: `12.5 MiB`.
fn human(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|&(shift, _)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    if bytes.is_multiple_of(1 << shift) {
        return format!("{} {unit}", bytes >> shift);
    }
    format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64)
}

/// `part` of `whole`, in per cent. Something is never shown as nothing, and not quite all never as all.
fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    match share {
        _ if part == 0 => "0 %".into(),
        _ if part == whole => "100 %".into(),
        _ if share < 0.1 => "< 0.1 %".into(),
        _ if share > 99.9 => "> 99.9 %".into(),
        _ => format!("{share:.1} %"),
    }
}

#[cfg(test)]
mod samples;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_exact_where_they_can_be() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (4096, "4 KiB"),
            (2 << 20, "2 MiB"),
            ((2 << 20) + 4096, "2.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 40, "1 TiB"),
        ] {
            assert_eq!(human(bytes), shown);
        }
    }

    #[test]
    fn shares_do_not_round_something_away() {
        assert_eq!(percent(0, 0), "0 %");
        assert_eq!(percent(1, 1 << 20), "< 0.1 %");
        assert_eq!(percent((1 << 20) - 1, 1 << 20), "> 99.9 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(3, 3), "100 %");
    }
}
