//! The words of `VmFlags` and what they mean to us: kept, without meaning, or refused.

use vckpt_image_format::record::process_map::flag;

/// An advice of `madvise(2)`, and its name.
type Advice = (i32, &'static str);

/// Words that are kept as [`flag`]s, and the advice that sets them again, if one does.
const KEPT: &[(&[u8; 2], u32, Option<Advice>)] = &[
    (b"gd", flag::GROWS_DOWN, None),
    (b"lo", flag::LOCKED, None),
    (b"sr", flag::SEQUENTIAL_READ, Some((libc::MADV_SEQUENTIAL, "MADV_SEQUENTIAL"))),
    (b"rr", flag::RANDOM_READ, Some((libc::MADV_RANDOM, "MADV_RANDOM"))),
    (b"dc", flag::DO_NOT_COPY, Some((libc::MADV_DONTFORK, "MADV_DONTFORK"))),
    (b"nr", flag::NO_RESERVE, None),
    (b"dd", flag::DO_NOT_DUMP, Some((libc::MADV_DONTDUMP, "MADV_DONTDUMP"))),
    (b"hg", flag::HUGE_PAGE, Some((libc::MADV_HUGEPAGE, "MADV_HUGEPAGE"))),
    (b"nh", flag::NO_HUGE_PAGE, Some((libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"))),
    (b"mg", flag::MERGEABLE, Some((libc::MADV_MERGEABLE, "MADV_MERGEABLE"))),
    (b"wf", flag::WIPE_ON_FORK, Some((libc::MADV_WIPEONFORK, "MADV_WIPEONFORK"))),
    (b"dp", flag::DROPPABLE, None),
    (b"lf", flag::LOCKED_ON_FAULT, None),
    (b"ac", flag::ACCOUNTED, None),
    (b"sl", flag::SEALED, None),
    (b"gu", flag::GUARDS, None),
];

/// Words that follow from the rest, or mean nothing to the program.
const WITHOUT_MEANING: &[&[u8; 2]] =
    &[b"rd", b"wr", b"ex", b"sh", b"mr", b"mw", b"me", b"ms", b"sd", b"mm", b"de", b"ar", b"ht", b"??"];

/// Words of memory that can't be kept, with their meaning.
const REFUSED: &[(&[u8; 2], &str)] = &[
    (b"pf", "memory of a device"),
    (b"io", "memory of a device"),
    (b"um", "a range that the program handles with userfaultfd"),
    (b"uw", "a range that the program handles with userfaultfd"),
    (b"ui", "a range that the program handles with userfaultfd"),
    (b"ss", "a shadow stack"),
    (b"sf", "a file of persistent memory with MAP_SYNC"),
];

/// What it means if a mapping with these flags forbids even to put a stub into its process: frames that are written to a
/// range handled by a stopped thread wait for that, and a shadow stack does not know of them.
#[must_use]
pub fn harmed_by_stub(words: &[[u8; 2]]) -> Option<&'static str> {
    const HARMED: [&[u8; 2]; 4] = [b"um", b"uw", b"ui", b"ss"];
    let refused = REFUSED.iter().filter(|(word, _)| HARMED.contains(word));
    refused.filter(|(word, _)| words.contains(word)).map(|&(_, meaning)| meaning).next()
}

/// The flags of a mapping.
///
/// # Errors
/// What about it can't be kept.
pub fn flags(words: &[[u8; 2]]) -> Result<u32, String> {
    let mut flags = 0;
    for word in words {
        if let Some((_, flag, _)) = KEPT.iter().find(|(kept, ..)| *kept == word) {
            flags |= flag;
        } else if let Some((_, meaning)) = REFUSED.iter().find(|(refused, _)| *refused == word) {
            return Err((*meaning).to_owned());
        } else if !WITHOUT_MEANING.contains(&word) {
            return Err(format!("memory with the unknown flag {:?}", String::from_utf8_lossy(word)));
        }
    }
    Ok(flags)
}

/// The advice that a mapping with these flags needs.
pub fn advice(flags: u32) -> impl Iterator<Item = Advice> {
    KEPT.iter().filter(move |(_, flag, _)| flags & flag != 0).filter_map(|(_, _, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_refused_or_unknown() {
        assert_eq!(flags(&[*b"rd", *b"gd", *b"dc"]), Ok(flag::GROWS_DOWN | flag::DO_NOT_COPY));
        assert!(flags(&[*b"sf"]).unwrap_err().contains("MAP_SYNC"));
        assert!(flags(&[*b"xy"]).unwrap_err().contains("unknown"));
        let advice: Vec<Advice> = advice(flag::DO_NOT_COPY | flag::GROWS_DOWN).collect();
        assert_eq!(advice, [(libc::MADV_DONTFORK, "MADV_DONTFORK")]);
    }
}
