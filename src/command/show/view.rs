//! An image in memory, ready to be shown: the records decoded and joined by their identities. No output here.

use crate::failure::{self, Failure, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vckpt_image_format::record::credentials::Credentials;
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::record::descriptor_table::DescriptorTable;
use vckpt_image_format::record::lightweight_process::LightweightProcess;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use vckpt_image_format::record::platform_name::PlatformName;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_map::{Layout, Mapping, ProcessMap};
use vckpt_image_format::record::process_status::{ProcessStatus, State};
use vckpt_image_format::record::sandbox::Sandbox;
use vckpt_image_format::record::schedule_control::ScheduleControl;
use vckpt_image_format::record::shared_segment::SharedSegment;
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::{FormatError, Image, MemoryId, SegmentId, TaskId};
use vckpt_supervisor::error::{Error, Subject, code};

/// The size of a page of an image.
pub(super) const PAGE: u64 = vckpt_image_format::PAGE_SIZE as u64;
/// Most bytes of a command line that are shown.
const COMMAND_LINE: u64 = 4096;

/// The layout of an address space, from all its records.
#[derive(Debug, Default)]
pub(super) struct AddressSpace {
    pub(super) layout: Option<Layout>,
    pub(super) mappings: Vec<Mapping>,
}

/// An image.
#[derive(Debug)]
pub(crate) struct View {
    pub(super) path: PathBuf,
    pub(super) image: Image,
    pub(super) snapshot: Snapshot,
    pub(super) platform: Option<PlatformName>,
    /// In the order of the image: parents before their children.
    pub(super) processes: Vec<Process>,
    pub(super) states: HashMap<TaskId, State>,
    pub(super) threads: HashMap<TaskId, LightweightProcess>,
    pub(super) spaces: HashMap<MemoryId, AddressSpace>,
    pub(super) segments: HashMap<SegmentId, SharedSegment>,
    /// By owner, sorted by address.
    pub(super) pages: HashMap<PageOwner, Vec<PageRun>>,
    pub(super) tables: Vec<DescriptorTable>,
    pub(super) directories: Vec<CurrentDirectory>,
    pub(super) credentials: Vec<Credentials>,
    pub(super) schedules: Vec<ScheduleControl>,
    pub(super) sandboxes: Vec<Sandbox>,
}

impl View {
    /// Opens an image and decodes its records. The bytes of its pages are not verified.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| {
            let error = Error::system(code::IMAGE_OPEN, "the image can't be opened", error);
            Failure::from(error.about(Subject::path(path.display())))
        })?;
        let load = || Self::decode(path, Image::open_without_pages(file)?);
        load().map_err(|error| failure::image(path.display(), &error))
    }

    fn decode(path: &Path, image: Image) -> Result<Self, FormatError> {
        let statuses = image.all::<ProcessStatus>()?;
        let threads = image.all::<LightweightProcess>()?;
        let segments = image.all::<SharedSegment>()?;
        let mut spaces: HashMap<MemoryId, AddressSpace> = HashMap::new();
        for record in image.all::<ProcessMap>()? {
            let space = spaces.entry(record.memory).or_default();
            space.layout = space.layout.take().or(record.layout);
            space.mappings.extend(record.mappings);
        }
        let mut pages: HashMap<PageOwner, Vec<PageRun>> = HashMap::new();
        for record in image.all::<MmapMemory>()? {
            pages.entry(record.owner).or_default().extend(record.runs);
        }
        for runs in pages.values_mut() {
            runs.sort_by_key(|run| run.address);
        }
        Ok(Self {
            path: path.to_path_buf(),
            snapshot: image.one()?,
            platform: image.all()?.pop(),
            processes: image.all()?,
            states: statuses.into_iter().map(|record| (record.process, record.state)).collect(),
            threads: threads.into_iter().map(|record| (record.id, record)).collect(),
            spaces,
            segments: segments.into_iter().map(|record| (record.id, record)).collect(),
            pages,
            tables: image.all()?,
            directories: image.all()?,
            credentials: image.all()?,
            schedules: image.all()?,
            sandboxes: image.all()?,
            image,
        })
    }

    /// The name of a process.
    pub(super) fn command(&self, process: TaskId) -> String {
        let found = self.processes.iter().find(|found| found.id == process);
        found.map(|found| found.command.to_string()).unwrap_or_default()
    }

    /// The runs of an owner that have pages from `start` to `end`.
    pub(super) fn runs(&self, owner: PageOwner, start: u64, end: u64) -> &[PageRun] {
        let runs = self.pages.get(&owner).map_or(&[][..], Vec::as_slice);
        let first = runs.partition_point(|run| run_end(run) <= start);
        let last = runs.partition_point(|run| run.address < end);
        runs.get(first..last).unwrap_or_default()
    }

    /// The command line of a process as it is in its memory; none if it is not stored.
    pub(super) fn command_line(&self, process: &Process) -> Option<String> {
        let living = process.living.as_ref()?;
        let (start, end) = self.spaces.get(&living.memory)?.layout.as_ref()?.arguments;
        let length = end.checked_sub(start)?.min(COMMAND_LINE);
        let bytes = self.memory(process, start, length)?;
        let words: Vec<String> = bytes
            .split(|&byte| byte == 0)
            .map(|word| vckpt_image_format::Text::from(word).to_string())
            .collect();
        let line = words.join(" ");
        Some(line.trim_end().to_owned()).filter(|line| !line.is_empty())
    }

    /// Bytes of the memory of a process, as far as they are stored.
    fn memory(&self, process: &Process, start: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut address = start;
        let end = start.checked_add(length)?;
        while address < end {
            let page = address / PAGE * PAGE;
            let part = (page.checked_add(PAGE)?.min(end) - address).try_into().ok()?;
            let mut buffer = vec![0; part];
            let offset = self.page_offset(process, page)?;
            self.image.file().read_exact_at(&mut buffer, offset + (address - page)).ok()?;
            bytes.extend(buffer);
            address = page + PAGE;
        }
        Some(bytes)
    }

    /// Where in the file a page of a process is stored: with it, or with an ancestor that shares it.
    fn page_offset(&self, process: &Process, page: u64) -> Option<u64> {
        let mut process = process;
        // A chain of parents has at most as many links as there are processes.
        for _ in 0..self.processes.len() {
            let memory = process.living.as_ref()?.memory;
            let run = self.runs(PageOwner::Memory(memory), page, page.checked_add(PAGE)?).first()?;
            match run.source {
                PageSource::Stored { section, page: first } => {
                    let section = self.image.page_section(section)?;
                    let number = first.checked_add((page - run.address) / PAGE)?;
                    return section.offset.checked_add(number.checked_mul(PAGE)?);
                }
                PageSource::Parent => {
                    let parent = process.parent?;
                    process = self.processes.iter().find(|candidate| candidate.id == parent)?;
                }
                PageSource::Zero | PageSource::Guard => return None,
            }
        }
        None
    }
}

/// The first address behind a run.
pub(super) fn run_end(run: &PageRun) -> u64 {
    run.address.saturating_add(run.count.saturating_mul(PAGE))
}
