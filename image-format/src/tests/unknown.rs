//! Records of later programs.

use super::{ended, open, refused, written, zombie};
use crate::codec::encode;
use crate::error::FormatError;
use crate::layout::{Descriptor, MUST_UNDERSTAND};
use crate::record::Record;
use crate::record::process_status::ProcessStatus;
use crate::{Kind, TaskId};

/// An image with a record of this kind.
fn image(code: u16, version: u16, flags: u16, name: &str, data: &[u8]) -> Vec<u8> {
    written(|writer| {
        writer.record(&ended(7, None)).unwrap();
        writer.frame(code, Descriptor { version, flags }, name, data).unwrap();
    })
}

#[test]
fn an_unknown_kind_that_must_be_understood_is_refused() {
    let error = refused(&image(4711, 1, MUST_UNDERSTAND, "flux 3\ncapacitor", b"anything"));
    let FormatError::UnknownKind { code, name } = error else { panic!("{error}") };
    assert_eq!((code, name.as_str()), (4711, "flux 3\\ncapacitor"));
}

#[test]
fn an_unknown_kind_that_need_not_be_understood_is_skipped() {
    let image = open(&image(4711, 9, 0, "flux", b"anything")).unwrap();
    let frame = image.frames().last().unwrap();
    assert_eq!((frame.code, frame.kind, frame.name.as_str()), (4711, None, "flux"));
    assert_eq!(image.data(frame.number).unwrap(), b"anything");
}

#[test]
fn a_later_version_is_refused_if_it_must_be_understood() {
    let code = Kind::ProcessStatus.code();
    let later = ProcessStatus::VERSION + 1;
    let error = refused(&image(code, later, MUST_UNDERSTAND, "status", b""));
    assert!(
        matches!(error, FormatError::NewerRecord { found, supported: ProcessStatus::VERSION, .. } if found == later),
        "{error}"
    );
    let image = open(&image(code, later, 0, "status", b"")).unwrap();
    assert_eq!(image.all::<ProcessStatus>().unwrap(), []);
}

#[test]
fn versions_and_flags_that_do_not_exist() {
    let code = Kind::ProcessStatus.code();
    let error = refused(&image(code, 0, MUST_UNDERSTAND, "status", b""));
    assert!(matches!(error, FormatError::Damaged { .. }), "{error}");
    let error = refused(&image(code, 1, MUST_UNDERSTAND | 2, "status", b""));
    assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
}

#[test]
fn data_that_is_no_such_record_is_refused() {
    let status =
        ProcessStatus { process: TaskId(7), state: zombie(0), stop_untold: false, continue_untold: false };
    let mut data = encode(&status).unwrap();
    let code = Kind::ProcessStatus.code();
    open(&image(code, ProcessStatus::VERSION, MUST_UNDERSTAND, "status", &data)).unwrap();
    data.push(0);
    let error = refused(&image(code, ProcessStatus::VERSION, MUST_UNDERSTAND, "status", &data));
    assert_eq!(
        error.to_string(),
        "the image is inconsistent: process status \"status\": record data has 1 bytes too many"
    );
    // Also one that need not be understood, if this program does understand it.
    let error = refused(&image(code, ProcessStatus::VERSION, 0, "status", &[]));
    assert!(matches!(error, FormatError::Inconsistent { .. }), "{error}");
}
