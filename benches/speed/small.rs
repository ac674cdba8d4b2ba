//! A small process: the wall time of whole commands.

use super::Outcome;
use super::options::Options;
use super::stage::{Folder, Program, run};
use super::table::{Table, Target, milliseconds, ratios};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What a command may take, in milliseconds.
const LIMIT: f64 = 10.0;

/// `sleep`, dumped and restored.
pub(crate) fn measure(options: &Options, table: &mut Table) -> Outcome {
    for within in &options.folders {
        let folder = Folder::new(within)?;
        let image = folder.file("small.vckpt");
        let (mut dumps, mut restores) = (Vec::new(), Vec::new());
        let (mut peer_dumps, mut peer_restores) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds(31) {
            let program = Program::sleep()?;
            dumps.push(program.dump(&image)?);
            restores.push(Program::restore(&image)?);
            drop(program);
            if let Some(criu) = &options.criu {
                let (dump, restore) = peer(criu, &folder)?;
                peer_dumps.push(dump);
                peer_restores.push(restore);
            }
        }
        let place = within.display();
        let limit = Target::AtMost(LIMIT);
        table.row(&format!("dump sleep, {place}"), "ms", &milliseconds(&dumps), limit);
        table.row(&format!("restore sleep, {place}"), "ms", &milliseconds(&restores), limit);
        if options.criu.is_some() {
            table.row("  CRIU dump", "ms", &milliseconds(&peer_dumps), Target::None);
            table.row("  CRIU restore", "ms", &milliseconds(&peer_restores), Target::None);
            table.row("  CRIU / vckpt, dump", "times", &ratios(&peer_dumps, &dumps), Target::None);
            table.row("  CRIU / vckpt, restore", "times", &ratios(&peer_restores, &restores), Target::None);
        }
    }
    Ok(())
}

/// The same with CRIU.
fn peer(criu: &Path, folder: &Folder) -> Outcome<(Duration, Duration)> {
    let program = Program::sleep()?;
    let images = folder.file("criu");
    let _ = fs::remove_dir_all(&images);
    fs::create_dir_all(&images)?;
    let pid = program.pid().to_string();
    let dump = run(Command::new(criu).args(["dump", "-t", &pid, "-D"]).arg(&images))?;
    super::stage::reap()?;
    let restore = run(Command::new(criu).args(["restore", "-d", "-D"]).arg(&images))?;
    Ok((dump, restore))
}
