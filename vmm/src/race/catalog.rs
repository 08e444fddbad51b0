//! Which races there are.

use super::error::LabError;
use super::races::{
    continue_vs_zap, dedup_vs_pin, huge_map_over_missing, huge_vs_small_fault, lock_vs_detach,
    pin_vs_collapse, pin_vs_unexclusive, place_vs_retract,
};
use super::variant::Race;

/// All of them.
pub const RACES: &[Race] = &[
    pin_vs_collapse::RACE,
    pin_vs_unexclusive::RACE,
    dedup_vs_pin::RACE,
    place_vs_retract::RACE,
    huge_vs_small_fault::RACE,
    huge_map_over_missing::RACE,
    continue_vs_zap::RACE,
    lock_vs_detach::RACE,
];

/// The race `name`.
///
/// # Errors
/// [`LabError::NoRace`].
pub fn find(name: &str) -> Result<&'static Race, LabError> {
    let known = || RACES.iter().map(|race| race.name).collect();
    let found = RACES.iter().find(|race| race.name == name);
    found.ok_or_else(|| LabError::NoRace { name: name.into(), known: known() })
}

/// The page of the race `name`, from the root of the repository.
pub fn page(name: &str) -> String {
    format!("guest_mm/docs/races/{name}.md")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use guest_mm::protocol::{Steps, block};

    use super::*;

    #[test]
    fn each_race_has_a_block_a_page_and_variants_whose_models_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for race in RACES {
            assert!(block(race.name).is_some(), "{} has no protocol block", race.name);
            assert!(root.join(page(race.name)).exists(), "{} is not there", page(race.name));
            assert!(!race.variants.is_empty());
            for variant in race.variants {
                assert_ne!(variant.steps, Steps::ALL, "{} takes every step", variant.name);
                let (module, test) = variant.loom.rsplit_once("::").expect("a path");
                let source = format!("guest_mm/src/{}.rs", module.replace("::", "/"));
                let text = std::fs::read_to_string(root.join(&source)).expect(&source);
                assert!(text.contains(&format!("fn {test}()")), "{source} has no {test}");
            }
        }
    }

    #[test]
    fn names_are_taken_once() {
        let mut names: Vec<&str> = RACES.iter().map(|race| race.name).collect();
        let variants = RACES.iter().flat_map(|race| race.variants);
        names.extend(variants.map(|variant| variant.name));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
