//! What is answered about balloons.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::config::Bytes;

/// The balloons of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloons {
    /// In the order of its config.
    pub balloons: Vec<BalloonSize>,
}

/// A balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonSize {
    /// Its name.
    pub name: String,
    /// Bytes that the guest is asked for.
    pub target: u64,
    /// Bytes that the guest says it has given. It gives them by and by, or not at all.
    pub actual: u64,
}

impl Balloons {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "{} asked for, {} given", self.sum(|b| b.target), self.sum(|b| b.actual))?;
        if self.balloons.len() > 1 {
            for balloon in &self.balloons {
                let name = super::collapse::one_line(&balloon.name);
                let (target, actual) = (Bytes::new(balloon.target), Bytes::new(balloon.actual));
                writeln!(out, "{name:>24}  {target} asked for, {actual} given")?;
            }
        }
        Ok(())
    }

    fn sum(&self, part: impl Fn(&BalloonSize) -> u64) -> Bytes {
        Bytes::new(self.balloons.iter().map(part).fold(0, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_is_asked_for_and_what_is_given() {
        let balloon =
            |name: &str| BalloonSize { name: name.to_owned(), target: 64 << 20, actual: 3 << 12 };
        let mut out = String::new();
        Balloons { balloons: vec![balloon("balloon.a")] }.write(&mut out).unwrap();
        assert_eq!(out, "64 MiB asked for, 12 KiB given\n");
        out.clear();
        let both = Balloons { balloons: vec![balloon("balloon.a"), balloon("balloon.b")] };
        both.write(&mut out).unwrap();
        assert_eq!(out.lines().count(), 3);
        assert!(out.starts_with("128 MiB asked for, 24 KiB given\n"), "{out}");
        assert!(out.contains("balloon.b  64 MiB asked for"), "{out}");
    }
}
