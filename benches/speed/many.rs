//! Many of a kind: processes, threads, descriptors, connections, mappings; and what one more costs.

use super::Outcome;
use super::options::Options;
use super::stage::{Folder, Program};
use super::table::{Table, Target, median, milliseconds};

/// What there is many of.
struct Kind {
    what: &'static str,
    fixture: &'static str,
    /// Few and many, between which the slope is.
    numbers: [usize; 2],
    /// In milliseconds: dump and restore, standstill.
    limits: [Target; 2],
}

const SECOND: Target = Target::AtMost(1000.0);

const KINDS: [Kind; 5] = [
    Kind { what: "processes", fixture: "tree", numbers: [100, 1000], limits: [SECOND, Target::None] },
    Kind { what: "threads", fixture: "threads", numbers: [100, 1000], limits: [SECOND, Target::None] },
    Kind {
        what: "mixed descriptors",
        fixture: "descriptors",
        numbers: [120, 1000],
        limits: [SECOND, Target::AtMost(300.0)],
    },
    Kind {
        what: "TCP connections, both ends",
        fixture: "connections",
        numbers: [100, 1000],
        limits: [SECOND, Target::AtMost(300.0)],
    },
    Kind {
        what: "mappings",
        fixture: "mappings",
        numbers: [2000, 20_000],
        limits: [Target::None, Target::None],
    },
];

/// Few and many of each kind, dumped and restored.
pub(crate) fn measure(options: &Options, table: &mut Table) -> Outcome {
    for kind in KINDS {
        let few = rounds(options, &kind, kind.numbers[0])?;
        let many = rounds(options, &kind, kind.numbers[1])?;
        let more = (kind.numbers[1] - kind.numbers[0]) as f64;
        for (work, few, many, limit) in [
            ("dump", few.dumps, many.dumps, kind.limits[0]),
            ("frozen", few.frozen, many.frozen, kind.limits[1]),
            ("restore", few.restores, many.restores, kind.limits[0]),
        ] {
            table.row(&format!("{work} {} {}", kind.numbers[1], kind.what), "ms", &many, limit);
            let slope = (median(&many) - median(&few)) * 1000.0 / more;
            table.row(&format!("{work}, each more of {}", kind.what), "µs", &[slope], Target::None);
        }
    }
    Ok(())
}

/// In milliseconds.
#[derive(Default)]
struct Times {
    dumps: Vec<f64>,
    frozen: Vec<f64>,
    restores: Vec<f64>,
}

fn rounds(options: &Options, kind: &Kind, number: usize) -> Outcome<Times> {
    let within = options.folders.last().ok_or("no folder")?;
    let folder = Folder::new(within)?;
    let image = folder.file("many.vckpt");
    let mut times = Times::default();
    for _ in 0..options.rounds(5) {
        let (program, _) = Program::fixture(&folder, &[kind.fixture, &number.to_string()])?;
        let (dump, frozen) = program.dump_and_tell(&image)?;
        times.dumps.extend(milliseconds(&[dump]));
        times.frozen.extend(milliseconds(&[frozen]));
        times.restores.extend(milliseconds(&[Program::restore(&image)?]));
    }
    Ok(times)
}
