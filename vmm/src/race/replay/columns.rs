//! An interleaving as text: a column for each side.

use crate::race::stage::{Side, Turn};

/// Where the right column begins.
const RIGHT: usize = 54;

/// The heads of the columns.
pub(in crate::race) fn heads(sides: [&str; 2]) -> String {
    format!("  {:width$}{}\n", sides[0], sides[1], width = RIGHT - 2)
}

/// A row.
pub(in crate::race) fn row(side: Side, text: &str) -> String {
    match side {
        Side::Left => format!("  {text}\n"),
        Side::Right => format!("{:RIGHT$}{text}\n", ""),
    }
}

/// A schedule, a row for each turn.
pub(in crate::race) fn schedule(turns: &[Turn]) -> String {
    turns.iter().map(|turn| row(turn.side, &turn.until.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use guest_mm::protocol::Step;

    use super::*;
    use crate::race::stage::{left_until, right_ends};

    #[test]
    fn turns_stand_in_the_column_of_their_side() {
        let text = schedule(&[left_until(Step::P2), right_ends()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  until P2 pin the frame");
        assert_eq!(lines[1].find("to its end"), Some(RIGHT));
        assert_eq!(heads(["device", "collapse"]).find("collapse"), Some(RIGHT));
    }
}
