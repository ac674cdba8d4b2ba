//! What was written is what is read.

use super::{ended, file, open, page, sample, snapshot, written};
use crate::error::{FormatError, WriteError};
use crate::record::process::Process;
use crate::record::process_map::ProcessMap;
use crate::record::process_status::ProcessStatus;
use crate::record::snapshot::Snapshot;
use crate::{CHUNK_SIZE, Image, ImageWriter, Kind, PAGE_SIZE, to_json};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

#[test]
fn the_sample() {
    let bytes = sample();
    let image = open(&bytes).unwrap();
    assert_eq!(image.len(), bytes.len() as u64);
    assert_eq!(image.one::<Snapshot>().unwrap(), snapshot());
    assert_eq!(image.all::<Process>().unwrap(), [ended(7, None)]);
    assert_eq!(image.one::<ProcessMap>().unwrap().mappings.len(), 2);
    let sections: Vec<u64> = image.page_sections().map(|section| section.pages).collect();
    assert_eq!(sections, [2, 0, 1]);
    assert_eq!(image.page_section(3), None);
    let section = image.page_section(0).unwrap();
    assert_eq!(section.offset % PAGE_SIZE as u64, 0);
    let mut read = page(0);
    image.file().read_exact_at(&mut read, section.offset + PAGE_SIZE as u64).unwrap();
    assert_eq!(read, page(2));
}

#[test]
fn frames_tell_what_is_there() {
    let image = Image::open_without_pages(file(&sample())).unwrap();
    let frames: Vec<_> = image.frames().collect();
    let kinds: Vec<_> = frames.iter().map(|frame| frame.kind.unwrap().code()).collect();
    assert_eq!(kinds, [10, 9, 14, 18, 17, 68, 17]);
    let process = &frames[1];
    assert_eq!(process.name, "process 7 counter");
    assert_eq!((process.version, process.must_understand, process.descriptor_size), (1, true, 8));
    assert_eq!(usize::from(process.name_size), process.name.len());
    assert_eq!(process.offset, frames[0].offset + frames[0].length);
    let data = image.data(process.number).unwrap();
    assert_eq!(data.len(), usize::try_from(process.data_size).unwrap());
    assert_eq!(to_json(Kind::Process, data).unwrap()["command"], "counter");
    assert!((crate::record::find(Kind::Process).unwrap().debug)(data).unwrap().starts_with("Process {"));
}

#[test]
fn one_is_exactly_one() {
    let image = open(&written(|writer| {
        writer.record(&ended(7, None)).unwrap();
    }))
    .unwrap();
    let error = image.one::<ProcessStatus>().unwrap_err();
    assert!(matches!(error, FormatError::Inconsistent { .. }), "{error}");
}

#[test]
fn chunks_of_all_lengths() {
    let most = 3 * CHUNK_SIZE / PAGE_SIZE;
    // Steps that hit chunk borders, miss them, and go past several at once.
    for (total, step) in [(most, 256), (most + 1, 257), (most - 1, 3), (most, most), (1, 1), (0, 1)] {
        let content: Vec<u8> =
            (0..total * PAGE_SIZE).map(|at| u8::try_from((at / PAGE_SIZE) % 251).unwrap()).collect();
        let bytes = written(|writer| {
            writer.record(&ended(7, None)).unwrap();
            writer.begin_page_section().unwrap();
            for part in content.chunks(step * PAGE_SIZE) {
                writer.pages(part).unwrap();
            }
            assert_eq!(writer.page_position(), total as u64);
        });
        let section = open(&bytes).unwrap().page_section(0).unwrap();
        assert_eq!(section.pages, total as u64);
        assert!(bytes[usize::try_from(section.offset).unwrap()..].starts_with(&content));
    }
}

/// A sink that counts calls, and fails behind a number of bytes.
#[derive(Debug, Default)]
struct Sink {
    calls: usize,
    bytes: usize,
    most: usize,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.bytes == self.most {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let taken = bytes.len().min(self.most - self.bytes);
        self.bytes += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_small_image_costs_few_calls() {
    let mut writer = ImageWriter::new(Sink { most: usize::MAX, ..Sink::default() }).unwrap();
    for id in 0..500 {
        writer.record(&ended(id + 1, None)).unwrap();
    }
    writer.begin_page_section().unwrap();
    for _ in 0..10 {
        writer.pages(&page(1)).unwrap();
    }
    let position = writer.position();
    let sink = writer.finish().unwrap();
    assert!(sink.calls <= 2, "{sink:?}");
    assert!(sink.bytes as u64 > position);
}

#[test]
fn nothing_is_written_after_a_failure() {
    let mut writer = ImageWriter::new(Sink { most: 10_000, ..Sink::default() }).unwrap();
    writer.record(&snapshot()).unwrap();
    writer.begin_page_section().unwrap();
    let error = writer.pages(&page(1).repeat(100)).unwrap_err();
    assert!(matches!(error, WriteError::Io(_)), "{error}");
    assert!(matches!(writer.record(&snapshot()).unwrap_err(), WriteError::Failed));
    assert!(matches!(writer.pages(&page(1)).unwrap_err(), WriteError::Failed));
    assert!(matches!(writer.begin_page_section().unwrap_err(), WriteError::Failed));
    assert!(matches!(writer.finish().unwrap_err(), WriteError::Failed));
}

#[test]
fn misuse_is_refused_and_does_no_harm() {
    let bytes = written(|writer| {
        assert!(matches!(writer.pages(&page(1)).unwrap_err(), WriteError::NoSection));
        assert!(matches!(writer.record(&ended(0, None)).unwrap_err(), WriteError::Invalid { .. }));
        assert_eq!(writer.next_page_section(), 0);
        writer.begin_page_section().unwrap();
        assert!(matches!(writer.pages(&[0; 100]).unwrap_err(), WriteError::PartialPage(100)));
        writer.record(&ended(7, None)).unwrap();
        assert!(matches!(writer.pages(&page(1)).unwrap_err(), WriteError::NoSection));
        assert_eq!(writer.next_page_section(), 1);
    });
    open(&bytes).unwrap();
}

#[test]
fn long_names_are_cut_between_characters() {
    let mut snapshot = snapshot();
    snapshot.command = crate::Text::from("ä".repeat(70_000));
    let mut writer = ImageWriter::new(Vec::new()).unwrap();
    writer.record(&snapshot).unwrap();
    writer.record(&ended(7, None)).unwrap();
    let image = open(&writer.finish().unwrap()).unwrap();
    let frame = image.frames().next().unwrap();
    assert!((1023..=1024).contains(&frame.name_size));
    assert!(!frame.name.contains('\u{fffd}'));
    assert_eq!(image.one::<Snapshot>().unwrap(), snapshot);
}
