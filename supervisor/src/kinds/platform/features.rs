//! What programs may do on a processor: the instructions that its `CPUID` offers, and the components of its state.
//!
//! Programs look once, when they start, and then use what they have found; so a host has to have all of it. Names are
//! those of `/proc/cpuinfo`; only what an ordinary program can use counts.

use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

/// A register of an answer of `CPUID`.
type Register = fn(&CpuidResult) -> u32;

/// Leaf, subleaf, register, and the bits with their names.
type Group = (u32, u32, Register, &'static [(u32, &'static str)]);

const GROUPS: [Group; 9] = [
    (
        1,
        0,
        |leaf| leaf.edx,
        &[
            (0, "fpu"),
            (4, "tsc"),
            (8, "cx8"),
            (15, "cmov"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
        ],
    ),
    (
        1,
        0,
        |leaf| leaf.ecx,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (27, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (
        7,
        0,
        |leaf| leaf.ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (8, "bmi2"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        7,
        0,
        |leaf| leaf.ecx,
        &[
            (1, "avx512vbmi"),
            (4, "ospke"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
            (29, "enqcmd"),
        ],
    ),
    (
        7,
        0,
        |leaf| leaf.edx,
        &[
            (2, "avx512_4vnniw"),
            (3, "avx512_4fmaps"),
            (8, "avx512_vp2intersect"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
        ],
    ),
    (
        7,
        1,
        |leaf| leaf.eax,
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (3, "rao_int"),
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (7, "cmpccxadd"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
        ],
    ),
    (0xd, 1, |leaf| leaf.eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")]),
    (
        0x8000_0001,
        0,
        |leaf| leaf.ecx,
        &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
            (29, "mwaitx"),
        ],
    ),
    (0x8000_0001, 0, |leaf| leaf.edx, &[(22, "mmxext"), (27, "rdtscp"), (30, "3dnowext"), (31, "3dnow")]),
];

/// The features that this processor has.
pub(super) fn here() -> Vec<String> {
    let mut found = Vec::new();
    for (leaf, subleaf, register, bits) in GROUPS {
        let highest = __cpuid(leaf & 0x8000_0000).eax;
        let has_subleaf = leaf != 7 || subleaf <= __cpuid_count(7, 0).eax;
        if leaf > highest || !has_subleaf {
            continue;
        }
        let word = register(&__cpuid_count(leaf, subleaf));
        found.extend(
            bits.iter().filter(|(bit, _)| word & (1 << bit) != 0).map(|(_, name)| (*name).to_owned()),
        );
    }
    found
}

/// Those features of an image that `here` does not have.
pub(super) fn missing<'image>(image: &'image [String], here: &[String]) -> Vec<&'image str> {
    image.iter().filter(|name| !here.contains(name)).map(String::as_str).collect()
}

/// The components of the state that processors of this kind can keep.
pub(super) fn components() -> u64 {
    let leaf = __cpuid_count(0xd, 0);
    u64::from(leaf.eax) | u64::from(leaf.edx) << 32
}

/// The names of components of the state, by bit.
pub(super) fn component_names(components: u64) -> Vec<String> {
    const NAMES: [(u32, &str); 8] = [
        (1, "SSE"),
        (2, "AVX"),
        (5, "AVX-512 masks"),
        (6, "AVX-512 upper halves"),
        (7, "AVX-512 upper registers"),
        (9, "protection keys"),
        (17, "AMX configuration"),
        (18, "AMX tiles"),
    ];
    let name = |bit: u32| {
        NAMES.iter().find(|(of, _)| *of == bit).map_or_else(|| format!("bit {bit}"), |(_, n)| (*n).to_owned())
    };
    (0..64).filter(|bit| components & (1 << bit) != 0).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_that_the_kernel_names() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap();
        let known: Vec<&str> = line.split_whitespace().collect();
        let here = here();
        assert!(here.iter().any(|name| name == "sse2"));
        // The kernel leaves out what it keeps from programs, never the other way round.
        let all: Vec<&str> =
            GROUPS.iter().flat_map(|(.., bits)| bits.iter().map(|(_, name)| *name)).collect();
        let unseen: Vec<&&str> =
            known.iter().filter(|name| all.contains(name) && !here.iter().any(|one| one == *name)).collect();
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(missing(&names(&["avx", "avx2", "sse"]), &names(&["sse", "avx"])), ["avx2"]);
        assert_eq!(component_names(1 << 2 | 1 << 40), ["AVX", "bit 40"]);
    }
}
