//! The floors of each crate: imports point down only. The tables are the layout; a new module gets a place in one.

use std::path::Path;

use tests::imports::{Import, imports, module_path};
use tests::tree;

/// Modules that may import from the floors below them.
struct Floor {
    modules: &'static [&'static str],
    /// Whether they may also import each other.
    siblings: Siblings,
}

enum Siblings {
    Together,
    Apart,
}

use Siblings::{Apart, Together};

struct Crate {
    name: &'static str,
    /// From the lowest up.
    floors: &'static [Floor],
    /// Crates of this workspace that it may not name.
    forbidden: &'static [&'static str],
    /// Modules that may all the same.
    exempt: &'static [&'static str],
}

const fn floor(siblings: Siblings, modules: &'static [&'static str]) -> Floor {
    Floor { modules, siblings }
}

#[rustfmt::skip]
const CRATES: &[Crate] = &[
    Crate {
        name: "guest_mm",
        floors: &[
            floor(Together, &["addr", "entry", "prot", "geometry", "sync", "tally", "protocol", "historical", "background", "schedule", "notes"]),
            floor(Together, &["pool"]),
            floor(Together, &["table", "mirror", "image", "wait"]),
            floor(Together, &["space"]),
            floor(Apart, &["fault", "collapse", "share", "dirty", "unmap", "protect", "split", "mark", "copy"]),
            // What needs several of them on its way.
            floor(Apart, &["pin", "place", "dedup", "lift"]),
            floor(Together, &["mirrors"]),
            floor(Together, &["service", "audit", "stats", "map", "vm_memory", "postcopy"]),
        ],
        forbidden: &["devices", "vmm", "tests"],
        exempt: &[],
    },
    Crate {
        name: "devices",
        floors: &[
            floor(Together, &["bus"]),
            floor(Apart, &["serial", "rtc", "cmos", "i8042", "acpi_power", "debug_exit", "quiet", "dma"]),
            floor(Apart, &["virtio"]),
        ],
        forbidden: &["guest_mm", "vmm", "tests"],
        exempt: &["dma"],
    },
    Crate {
        name: "vmm",
        floors: &[
            floor(Apart, &["config"]),
            floor(Apart, &["boot", "kvm", "guests", "map", "control"]),
            floor(Apart, &["ram"]),
            floor(Apart, &["emulate"]),
            floor(Apart, &["vcpu"]),
            floor(Apart, &["state"]),
            floor(Apart, &["snapshot"]),
            floor(Apart, &["machine", "rig"]),
            floor(Together, &["bench", "race"]),
            floor(Together, &["cli"]),
        ],
        forbidden: &["tests"],
        exempt: &[],
    },
];

/// Modules that look at several others from outside: tests and models.
const OUTSIDE: [&str; 3] = ["tests", "model", "property"];

impl Crate {
    fn floor_of(&self, module: &str) -> Option<usize> {
        self.floors.iter().position(|floor| floor.modules.contains(&module))
    }

    /// Whether `from` may import `to`, both on the floors given.
    fn allows(&self, (from, low): (&str, usize), (to, high): (&str, usize)) -> bool {
        match self.floors[low].siblings {
            _ if from == to => true,
            Together => high <= low,
            Apart => high < low,
        }
    }

    /// What breaks the rules in the source `file` (below `src`), one sentence each.
    fn violations(&self, file: &Path, source: &str) -> Vec<String> {
        let path = module_path(file);
        let shown = format!("{}/src/{}", self.name, file.display());
        if path.iter().any(|module| OUTSIDE.contains(&module.as_str())) {
            return Vec::new();
        }
        let mut violations = Vec::new();
        let found = imports(source, &path, self.forbidden);
        let module = path.first().map(String::as_str);
        for import in &found {
            let Import::Crate(name) = import else {
                continue;
            };
            if !module.is_some_and(|module| self.exempt.contains(&module)) {
                violations.push(format!(
                    "{shown} names the crate {name}, which lies above or beside {}",
                    self.name
                ));
            }
        }
        // The root sees everything.
        let Some(module) = module else {
            return violations;
        };
        let Some(floor) = self.floor_of(module) else {
            violations.push(format!(
                "{shown} has no floor: put \"{module}\" into the table of {} in tests/tests/layering.rs",
                self.name
            ));
            return violations;
        };
        for import in &found {
            let Import::Module(name) = import else {
                continue;
            };
            // What is no module is an item of the root.
            let Some(other) = self.floor_of(name) else {
                continue;
            };
            if !self.allows((module, floor), (name, other)) {
                violations.push(format!(
                    "{shown} (floor {floor}) imports {name} (floor {other}): imports point down"
                ));
            }
        }
        violations
    }
}

#[test]
fn imports_point_down() {
    let mut violations = Vec::new();
    for this in CRATES {
        let src = tree::root().join(this.name).join("src");
        for path in tree::sources(&src) {
            let file = path.strip_prefix(&src).expect("sources lie below src");
            violations.extend(this.violations(file, &tree::text(&path)));
        }
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn what_breaks_the_rules_is_noticed() {
    let [guest_mm, devices, vmm] = CRATES else { panic!("three crates") };
    for (this, file, source, says) in [
        (guest_mm, "pool/buddy.rs", "use crate::table::Walk;", "imports table"),
        (guest_mm, "collapse/mod.rs", "use super::fault::go;", "imports fault"),
        (guest_mm, "audit.rs", "use vmm::cli;", "names the crate vmm"),
        (guest_mm, "misc.rs", "", "has no floor"),
        (devices, "serial.rs", "guest_mm::x();", "names the crate guest_mm"),
        (vmm, "config/mod.rs", "use crate::cli::main;", "imports cli"),
        (vmm, "boot/mod.rs", "use crate::kvm;", "imports kvm"),
        (vmm, "control/server.rs", "use crate::machine::ServedRam;", "imports machine"),
        (vmm, "map/text.rs", "use crate::control::ask;", "imports control"),
    ] {
        let violations = this.violations(Path::new(file), source);
        assert!(violations.len() == 1 && violations[0].contains(says), "{file}: {violations:?}");
    }
    for (this, file, source) in [
        (guest_mm, "pin/mod.rs", "use crate::{pin::x, pool, table::walk}; use super::addr;"),
        (guest_mm, "pin/model.rs", "use crate::collapse;"),
        (guest_mm, "property/ops.rs", "use crate::collapse;"),
        (guest_mm, "lib.rs", "pub use crate::service::X;"),
        (devices, "dma.rs", "use guest_mm::x;"),
        (vmm, "machine.rs", "use guest_mm::x; use crate::vcpu;"),
    ] {
        let violations = this.violations(Path::new(file), source);
        assert!(violations.is_empty(), "{file}: {violations:?}");
    }
}

#[test]
fn no_module_has_two_floors() {
    for this in CRATES {
        let mut seen = std::collections::HashSet::new();
        for module in this.floors.iter().flat_map(|floor| floor.modules) {
            assert!(seen.insert(module), "{} has {module} twice", this.name);
        }
    }
}
