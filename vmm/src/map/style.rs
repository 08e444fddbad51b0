//! What the parts of the picture share: measures, colours, and how text is written into XML.

use super::counts::Kind;

/// Around everything.
pub(super) const MARGIN: usize = 32;
/// In front of the squares, for the addresses.
pub(super) const LABELS: usize = 112;
pub(super) const INK: &str = "#1f2328";
pub(super) const PALE_INK: &str = "#656d76";
pub(super) const SANS: &str =
    "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif";
pub(super) const MONO: &str = "'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace";

/// Colours that people who see few colours can tell apart (Okabe and Ito's, without the yellow).
pub(super) fn colour(kind: Kind, fill: usize) -> &'static str {
    match kind {
        Kind::Untouched => "#eef1f4",
        Kind::Small => ["#fbe6bd", "#f6cf80", "#efb43f", "#e69f00"][fill - 1],
        Kind::Scattered => "#d55e00",
        Kind::Shared => "#7b5aa6",
        Kind::Image => "#7fc8b8",
        Kind::Huge => "#009e73",
        Kind::Giant => "#0072b2",
        Kind::Missing => "#cc79a7",
        Kind::Guard => "#56b4e9",
        Kind::Poison => "#b3001b",
        Kind::Returned => "#c3cad1",
    }
}

/// A letter for what is rare, lest a single square be missed.
pub(super) fn letter(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Guard => Some("g"),
        Kind::Poison => Some("×"),
        _ => None,
    }
}

/// `text` between tags or quotes. XML has no way to write most control characters.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
