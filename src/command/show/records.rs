//! Every resource record, by its kind of FIG. 7.

use super::view::View;
use crate::table::{Align, Table};
use crate::units;
use serde::Serialize;
use vckpt_image_format::Kind;

/// A record.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) code: u16,
    /// In the words of FIG. 7; none if this program does not know the kind.
    kind: Option<String>,
    #[serde(skip)]
    word: &'static str,
    name: String,
    offset: u64,
    data_size: u32,
    length: u64,
    version: u16,
    must_understand: bool,
}

/// All records, ordered by kind, and within a kind as they are in the image.
pub(crate) fn rows(view: &View) -> Vec<Row> {
    let mut rows: Vec<Row> = view
        .image
        .frames()
        .map(|frame| Row {
            code: frame.code,
            kind: frame.kind.map(title),
            word: frame.kind.map_or("unknown", Kind::word),
            name: frame.name,
            offset: frame.offset,
            data_size: frame.data_size,
            length: frame.length,
            version: frame.version,
            must_understand: frame.must_understand,
        })
        .collect();
    rows.sort_by_key(|row| (row.code, row.offset));
    rows
}

/// The name of a kind, written as in FIG. 7.
fn title(kind: Kind) -> String {
    if kind == Kind::MmapMemory {
        return "MMap memory".to_owned();
    }
    let mut letters = kind.word().chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The records under a heading for each kind, and the sum.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let mut table = Table::new(&[
        ("CODE", Align::Right),
        ("KIND", Align::Left),
        ("COUNT", Align::Right),
        ("BYTES", Align::Right),
        ("NAME", Align::Left),
    ]);
    for group in rows.chunk_by(|left, right| left.code == right.code) {
        let bytes: u64 = group.iter().map(|row| row.length).sum();
        let Some(first) = group.first() else { continue };
        table.row([
            first.code.to_string(),
            first.kind.clone().unwrap_or_else(|| "unknown".to_owned()),
            group.len().to_string(),
            bytes.to_string(),
            String::new(),
        ]);
        for row in group {
            let (code, kind, count) = (String::new(), String::new(), String::new());
            table.row([code, kind, count, row.length.to_string(), row.name.clone()]);
        }
    }
    let mut lines = table.lines();
    let bytes: u64 = rows.iter().map(|row| row.length).sum();
    lines.push(format!("{} with {}", units::count(rows.len(), "record", "records"), units::bytes(bytes)));
    lines
}

/// How many records there are of each kind: word and number.
pub(crate) fn census(rows: &[Row]) -> Vec<(&'static str, usize)> {
    rows.chunk_by(|left, right| left.code == right.code)
        .filter_map(|group| Some((group.first()?.word, group.len())))
        .collect()
}
