//! Many processes and many threads, for information.

use super::Outcome;
use super::options::Options;
use super::stage::{Folder, Program};
use super::table::{Table, Target, milliseconds};

/// A wide tree and a process with many threads, dumped and restored.
pub(crate) fn measure(options: &Options, table: &mut Table) -> Outcome {
    for (what, name, number) in [
        ("100 processes", "tree", "100"),
        ("1000 threads", "threads", "1000"),
        ("20000 mappings", "mappings", "20000"),
    ] {
        let within = options.folders.last().ok_or("no folder")?;
        let folder = Folder::new(within)?;
        let image = folder.file("many.vckpt");
        let (mut dumps, mut restores) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds(5) {
            let (program, _) = Program::fixture(&folder, &[name, number])?;
            dumps.push(program.dump(&image)?);
            restores.push(Program::restore(&image)?);
        }
        table.row(&format!("dump {what}"), "ms", &milliseconds(&dumps), Target::None);
        table.row(&format!("restore {what}"), "ms", &milliseconds(&restores), Target::None);
    }
    Ok(())
}
