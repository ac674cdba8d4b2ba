//! Compiles the stub from the sources of this package, proves that its bytes run at any address, and keeps them for
//! the library.
//!
//! The compiler is called directly: a Cargo inside Cargo would wait for the lock of the target directory, and would
//! take over flags that were meant for others. The flags here decide the bytes, whatever the profile.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use goblin::elf::Elf;
use goblin::elf::program_header::{PF_W, PT_LOAD, PT_TLS};

#[allow(dead_code, unreachable_pub, reason = "only one of the lengths is used here")]
#[path = "src/protocol/mod.rs"]
mod protocol;

/// Sections that would have to be writable, or mean that something wants to be relocated or run at start.
const FORBIDDEN_SECTIONS: &[&str] = &[
    ".data",
    ".bss",
    ".got",
    ".got.plt",
    ".data.rel.ro",
    ".tdata",
    ".tbss",
    ".init_array",
    ".fini_array",
    ".preinit_array",
];

/// Flags of the code generator; the reasons are in the package's documentation of what the stub may not have.
const CODE_GENERATION: &[&str] = &[
    "panic=abort",
    "opt-level=s",
    "codegen-units=1",
    "overflow-checks=off",
    "debug-assertions=off",
    "relocation-model=pic",
    // With it, memory functions are called through a table of addresses, which needs relocations.
    "relro-level=off",
    "target-cpu=x86-64",
    "target-feature=+crt-static",
    "force-unwind-tables=no",
    // Only in the file beside the bytes, for a debugger.
    "debuginfo=1",
    "link-arg=-nostartfiles",
    // Not at a fixed address: that would hide what needs a relocation.
    "link-arg=-static-pie",
    "link-arg=-Wl,--build-id=none",
    // All of the image is mapped alike, so its segments need no pages of their own and no gaps between them.
    "link-arg=-Wl,-z,noseparate-code",
    "link-arg=-Wl,-z,common-page-size=64",
    "link-arg=-Wl,-z,max-page-size=64",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(parasite_stub)");
    let directory = PathBuf::from(variable("OUT_DIR")?);
    let file = directory.join("stub.elf");
    compile(&file)?;
    let bytes = fs::read(&file)?;
    let stub = check(&bytes).map_err(|reason| format!("the stub can't be injected: {reason}"))?;
    fs::write(directory.join("stub.image"), &stub.image)?;
    fs::write(directory.join("stub.entry"), stub.entry.to_string())?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn compile(file: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(variable("RUSTC")?);
    command.args(["--crate-name", "vckpt_stub", "--crate-type", "bin", "--edition", "2024"]);
    command.args(["--cfg", "parasite_stub", "--cap-lints", "allow", "--target", &variable("TARGET")?]);
    for flag in CODE_GENERATION {
        command.args(["-C", flag]);
    }
    if let Ok(linker) = variable("RUSTC_LINKER") {
        command.args(["-C", &format!("linker={linker}")]);
    }
    command.arg("-o").arg(file).arg("src/lib.rs");
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    if messages.contains("rust_eh_personality") || messages.contains("core::panicking") {
        // The linker only names places in core, not the function of the stub that leads there.
        return Err(
            "something in the stub can panic (an index, a division, an unwrap, formatting), and the stub \
                    has no code for that; look at what changed last"
                .into(),
        );
    }
    Err(format!("the stub does not compile:\n{messages}").into())
}

/// The stub as it is to lie in memory.
struct Stub {
    image: Vec<u8>,
    entry: usize,
}

fn check(bytes: &[u8]) -> Result<Stub, String> {
    let elf = Elf::parse(bytes).map_err(|error| format!("it is no ELF file: {error}"))?;
    let relocations = elf.dynrelas.len() + elf.dynrels.len() + elf.pltrelocs.len();
    if relocations != 0 {
        return Err(format!("it has {relocations} relocations (tables of pointers make them: use `match`)"));
    }
    for section in &elf.section_headers {
        let name = elf.shdr_strtab.get_at(section.sh_name).unwrap_or("");
        let family = FORBIDDEN_SECTIONS.iter().find(|forbidden| {
            name.strip_prefix(**forbidden).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if let Some(family) = family
            && section.sh_size != 0
        {
            return Err(format!(
                "section {name} (as {family}) has {} bytes and may have none",
                section.sh_size
            ));
        }
    }
    if elf.program_headers.iter().any(|header| header.p_type == PT_TLS) {
        return Err("it has thread-local storage".into());
    }
    let image = image(&elf, bytes)?;
    if image.len() > protocol::CODE_LENGTH {
        return Err(format!(
            "{} bytes of it do not fit into CODE_LENGTH ({})",
            image.len(),
            protocol::CODE_LENGTH
        ));
    }
    let entry = usize::try_from(elf.entry).map_err(|error| error.to_string())?;
    let executable = elf.program_headers.iter().any(|header| {
        header.p_type == PT_LOAD && header.is_executable() && header.vm_range().contains(&entry)
    });
    if !executable || entry >= image.len() {
        return Err(format!("its entry {entry:#x} is not in its code"));
    }
    Ok(Stub { image, entry })
}

/// The memory of the segments that are not written to, from address 0 on.
fn image(elf: &Elf<'_>, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut image = Vec::new();
    let mut starts_at_zero = false;
    for header in &elf.program_headers {
        if header.p_type != PT_LOAD || header.p_flags & PF_W != 0 {
            continue;
        }
        starts_at_zero |= header.p_vaddr == 0;
        let content = bytes.get(header.file_range()).ok_or("a segment is not in the file")?;
        let memory = header.vm_range();
        if content.len() != memory.len() {
            return Err("a read-only segment has memory that is not in the file".into());
        }
        if image.len() < memory.end {
            image.resize(memory.end, 0);
        }
        image[memory].copy_from_slice(content);
    }
    if starts_at_zero { Ok(image) } else { Err("no segment starts at address 0".into()) }
}
