//! Whose turn it is, and until when.

use std::fmt;

use guest_mm::protocol::Step;

use crate::race::point::Point;

/// A column of the protocol block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::race) enum Side {
    /// The left one.
    Left,
    /// The right one.
    Right,
}

impl Side {
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// When a turn ends, unless its side has to wait before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::race) enum Until {
    /// The side is about to do this.
    Before(Point),
    /// The side is through.
    End,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Until::Before(Point::Step(step)) => write!(f, "until {step}"),
            Until::Before(Point::Act(what)) => write!(f, "until {what}"),
            Until::End => f.write_str("to its end"),
        }
    }
}

/// One side goes on, and the other stays where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::race) struct Turn {
    pub(in crate::race) side: Side,
    pub(in crate::race) until: Until,
}

impl Turn {
    /// Whether it ends at `point`.
    pub(in crate::race) fn stops_at(&self, point: Point) -> bool {
        self.until == Until::Before(point)
    }
}

const fn until(side: Side, point: Point) -> Turn {
    Turn { side, until: Until::Before(point) }
}

/// The left side goes on until it is about to take `step`.
pub(in crate::race) const fn left_until(step: Step) -> Turn {
    until(Side::Left, Point::Step(step))
}

/// The right side goes on until it is about to take `step`.
pub(in crate::race) const fn right_until(step: Step) -> Turn {
    until(Side::Right, Point::Step(step))
}

/// The left side goes on until it is about to do `what`.
pub(in crate::race) const fn left_until_act(what: &'static str) -> Turn {
    until(Side::Left, Point::Act(what))
}

/// The right side goes on until it is about to do `what`.
pub(in crate::race) const fn right_until_act(what: &'static str) -> Turn {
    until(Side::Right, Point::Act(what))
}

/// The left side goes on to its end.
pub(in crate::race) const fn left_ends() -> Turn {
    Turn { side: Side::Left, until: Until::End }
}

/// The right side goes on to its end.
pub(in crate::race) const fn right_ends() -> Turn {
    Turn { side: Side::Right, until: Until::End }
}
