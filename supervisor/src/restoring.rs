//! A restore under way: the puppets, and the objects that were made for them.
//!
//! Dropping it before the release ends every puppet and removes every path that was made: nothing is left behind.

mod under_way;

use crate::clocks::Clocks;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::internet::revive::{self, Revived};
use crate::kinds::descriptor::io_uring::made::MadeRing;
use crate::kinds::descriptor::terminal::pair::restore::MadePair;
use crate::kinds::descriptor::unix::make::MadeSocket;
use crate::kinds::segment::system_v::Held;
use crate::namespaces;
use crate::plan::Stage;
use crate::stub::batch::{Batch, Outcome};
use crate::stub::puppet::{Child, PARENT, Place, Puppet};
use crate::tracee::{Running, Stop};
use crate::undo::Undo;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use under_way::UnderWay;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::description::Description;
use vckpt_image_format::{DescriptionId, NamelessFileId, RingId, SegmentId, SocketId, TaskId, TerminalId};

/// A restore under way.
#[derive(Debug)]
pub struct Restoring<'image> {
    /// The image, which was verified.
    pub image: &'image Image,
    /// The puppets of all threads, by virtual thread ID; that of a process is its leader's.
    pub puppets: BTreeMap<TaskId, Puppet>,
    /// The processes that have ended and were not waited for, as this program sees them.
    pub zombies: BTreeMap<TaskId, i32>,
    /// The pseudo-terminals that were made, until their descriptions are.
    pub pairs: HashMap<TerminalId, MadePair>,
    /// The unix sockets that were made, until they are filled.
    pub unix_sockets: HashMap<SocketId, MadeSocket>,
    /// The slaves that sessions of the tree have as their controlling terminals, by the leader of the session.
    pub session_terminals: HashMap<TaskId, OwnedFd>,
    /// Namespaces that the root is to make for itself (`CLONE_NEW…`).
    pub root_namespaces: u32,
    /// The open file descriptions that were made, until they are in every table that has them.
    pub descriptions: HashMap<DescriptionId, OwnedFd>,
    /// Descriptions that send signals, or say to whom they would.
    pub senders: Vec<Description>,
    /// The io_urings that were made.
    pub rings: HashMap<RingId, MadeRing>,
    /// The shared segments that were made: open for reading and writing.
    pub segments: HashMap<SegmentId, OwnedFd>,
    /// The System V segments that were found or made.
    pub system_v: HashMap<SegmentId, Held>,
    /// The nameless files that were made: open for reading, and for writing where a mapping needs that.
    pub nameless_files: HashMap<NamelessFileId, OwnedFd>,
    /// Where the root directory of the application's mount namespace is seen from here; empty for our own.
    pub root_directory: PathBuf,
    /// What can't be restored exactly, in one line each.
    pub degraded: Vec<String>,
    /// The paths that were made.
    pub undo: Undo,
    /// The TCP connections that were made and are to be let go.
    pub revived: Vec<Revived>,
    place: Place,
    /// Whether the tree is to live without whoever restores it: then it does not join that one's session.
    pub detached: bool,
    /// The clocks of the tree, if it gets its own.
    pub(crate) clocks: Option<Clocks>,
    /// The init of the tree's own PID namespace, if it gets one.
    init: Option<Puppet>,
    /// A process that leads the session of the root until the tree is made.
    leader: Option<Puppet>,
    root: TaskId,
    under_way: UnderWay,
}

/// What is left when a restore has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// The root, as this program sees it.
    pub root: i32,
    /// The child of this program whose end is that of the tree: the root, or the init of its namespace.
    pub child: i32,
}

impl<'image> Restoring<'image> {
    /// Nothing is made yet.
    #[must_use]
    pub fn new(image: &'image Image, root: TaskId, place: Place) -> Self {
        Self {
            image,
            puppets: BTreeMap::new(),
            zombies: BTreeMap::new(),
            root_namespaces: 0,
            pairs: HashMap::new(),
            unix_sockets: HashMap::new(),
            session_terminals: HashMap::new(),
            descriptions: HashMap::new(),
            senders: Vec::new(),
            rings: HashMap::new(),
            segments: HashMap::new(),
            system_v: HashMap::new(),
            nameless_files: HashMap::new(),
            root_directory: PathBuf::new(),
            degraded: Vec::new(),
            undo: Undo::default(),
            revived: Vec::new(),
            place,
            detached: false,
            clocks: None,
            init: None,
            leader: None,
            root,
            under_way: UnderWay::default(),
        }
    }

    /// Makes a PID namespace with an init of ours, in which the root will be made.
    ///
    /// # Errors
    /// [`code::PRIVILEGE`] or [`code::HOST_FEATURE`].
    pub fn enter_namespace(&mut self) -> Result<()> {
        let (init, degraded) = namespaces::start_init(self.place)?;
        self.root_directory = crate::proc::read::path(init.tid, "root");
        self.degraded.extend(degraded);
        self.init = Some(init);
        let degraded = match (self.clocks, &mut self.init) {
            (Some(clocks), Some(init)) => without_clocks(clocks.give(init)),
            _ => None,
        };
        self.degraded.extend(degraded);
        Ok(())
    }

    /// Makes the puppet of the root; `outer_session` is its session if a process outside of the tree led it.
    ///
    /// # Errors
    /// [`code::PID_TAKEN`], [`code::PRIVILEGE`].
    pub fn start_root(&mut self, id: TaskId, outer_session: Option<u32>) -> Result<()> {
        self.leader = outer_session.filter(|_| self.detached).and_then(|session| self.start_leader(session));
        let mut root = match (&mut self.leader, &mut self.init) {
            (Some(leader), _) => leader.spawn(Child::process(id))?,
            (None, Some(init)) => init.spawn(Child::process(id))?,
            (None, None) if self.clocks.is_some() => self.start_with_clocks(id)?,
            (None, None) => Puppet::start(id, 0, &[id.0.cast_signed()], self.place)?,
        };
        // An ignored SIGCHLD, which we may have inherited, would keep zombies from being zombies.
        let mut batch = Batch::new();
        let default = batch.words(&[0, 0, 0, 0]);
        let arguments = [libc::SIGCHLD.into(), default.into(), 0.into(), 8.into()];
        batch.must("resetting a signal", libc::SYS_rt_sigaction, arguments);
        if self.root_namespaces != 0 {
            batch.must("making namespaces", libc::SYS_unshare, [self.root_namespaces.into()]);
        }
        root.run(&batch)?;
        self.puppets.insert(id, root);
        Ok(())
    }

    /// Makes the puppet of the root in a time namespace: as the child of our child, which ends, it is our child.
    fn start_with_clocks(&mut self, id: TaskId) -> Result<Puppet> {
        let Some(clocks) = self.clocks else {
            return Err(Error::new(code::INTERNAL, "a time namespace without clocks"));
        };
        let mut maker = Puppet::start(id, 0, &[], self.place)?;
        self.degraded.extend(without_clocks(clocks.give(&mut maker)));
        let own = std::process::id().cast_signed();
        let root = maker.spawn(Child { flags: PARENT, parent: Some(own), ..Child::process(id) })?;
        maker.end(0)?;
        Ok(root)
    }

    /// Makes a process that leads a session of this number, as the one did that has ended and whose session the root
    /// was in. None if the number is taken: the root is then in the session of this program, which may be that very one.
    fn start_leader(&mut self, session: u32) -> Option<Puppet> {
        let number = i32::try_from(session).ok().filter(|&number| number > 1)?;
        let id = TaskId(session);
        let leader = match &mut self.init {
            Some(init) => init.spawn(Child::process(id)),
            None if crate::proc::read::path(number, "stat").exists() => return None,
            None => Puppet::start(id, 0, &[number], self.place),
        };
        let mut batch = Batch::new();
        batch.must("founding a session", libc::SYS_setsid, []);
        let mut leader = leader.ok()?;
        leader.run(&batch).ok()?;
        if let (Some(clocks), None) = (self.clocks, &self.init) {
            self.degraded.extend(without_clocks(clocks.give(&mut leader)));
        }
        Some(leader)
    }

    /// Ends the process that led the session of the root, when everybody is in it.
    ///
    /// # Errors
    /// If it is gone.
    pub fn end_leader(&mut self) -> Result<()> {
        self.leader.take().map_or(Ok(()), |mut leader| leader.end(0).map(drop))
    }

    /// Drops what is not needed behind a stage.
    ///
    /// # Errors
    /// None today.
    pub fn enter(&mut self, finished: Stage) -> Result<()> {
        if finished == Stage::Descriptors {
            self.descriptions.clear();
        }
        Ok(())
    }

    /// Lets all puppets run as what they have become.
    ///
    /// # Errors
    /// If one is gone.
    pub fn release(&mut self) -> Result<()> {
        if let Some(init) = &mut self.init {
            init.become_init(self.root)?;
        }
        let lines = revive::let_go(std::mem::take(&mut self.revived))?;
        self.degraded.extend(lines);
        for puppet in self.puppets.values_mut() {
            match puppet.release() {
                // From the first one on there is no way back: what ends now ends as what it has become.
                Err(error) if error.code != code::TARGET_DIED => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        self.system_v.values_mut().for_each(Held::keep);
        self.undo.release();
        Ok(())
    }

    /// What is left, after the release.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is no root.
    pub fn finish(mut self) -> Result<Released> {
        let root = self.system_id(self.root)?;
        Ok(Released { root, child: self.init.as_ref().map_or(root, |init| init.tid) })
    }
}

/// What it means that a tree can't have its clocks.
fn without_clocks(given: Result<()>) -> Option<String> {
    let error = given.err()?;
    let why = error.why.as_deref().unwrap_or_default();
    Some(format!("the monotonic clocks are those of this host, which are behind: {} ({why})", error.what))
}

fn no_puppet(thread: TaskId) -> Box<Error> {
    Error::new(code::INTERNAL, "a step for a task that has no puppet").about(Subject::task(thread.0, "task"))
}

/// How long a failed restore waits for the end of its puppets.
const PATIENCE: Duration = Duration::from_secs(5);

impl Drop for Restoring<'_> {
    /// Ends all puppets if they were not released, and returns when none of them is left.
    fn drop(&mut self) {
        let puppets = self.init.iter_mut().chain(self.puppets.values_mut());
        let mut dying: Vec<Running> = puppets.filter_map(Puppet::kill).collect();
        let deadline = Instant::now() + PATIENCE;
        while !dying.is_empty() && Instant::now() < deadline {
            dying = dying.into_iter().filter_map(still_there).collect();
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A killed task, unless it has ended.
fn still_there(dying: Running) -> Option<Running> {
    match dying.poll() {
        Ok(Err(running)) => Some(running),
        Ok(Ok(
            Stop::Interrupted(stopped, _)
            | Stop::Event(stopped, _)
            | Stop::Call(stopped)
            | Stop::Signal(stopped, _),
        )) => Some(stopped.killed()),
        Ok(Ok(Stop::Ended(_))) | Err(_) => None,
    }
}

impl Restoring<'_> {
    /// The puppet of a thread, which has done whatever was begun with it.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is none; what came of what was begun.
    pub fn puppet(&mut self, thread: TaskId) -> Result<&mut Puppet> {
        self.settle_thread(thread)?;
        self.puppets.get_mut(&thread).ok_or_else(|| no_puppet(thread))
    }

    /// The puppet of a thread, which may still do what was begun with it: for what does not change.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is none.
    pub fn known_puppet(&self, thread: TaskId) -> Result<&Puppet> {
        self.puppets.get(&thread).ok_or_else(|| no_puppet(thread))
    }

    /// Runs a batch in a thread's puppet and checks that what must not fail did not.
    ///
    /// # Errors
    /// If the puppet can't be reached, or a call that must not fail did.
    pub fn run(&mut self, thread: TaskId, batch: &Batch) -> Result<Outcome> {
        self.puppet(thread)?.run(batch)
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> TaskId {
        self.root
    }

    /// The ID by which this program sees a task.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is no such task.
    pub fn system_id(&mut self, thread: TaskId) -> Result<i32> {
        Ok(self.puppet(thread)?.tid)
    }

    /// Lets something be made of a process that is started for that, and has ended afterwards: what processes leave
    /// behind that nobody waits for any more.
    ///
    /// # Errors
    /// If it can't be started; what `make` says.
    pub fn with_mortal<T>(&mut self, make: impl FnOnce(i32) -> Result<T>) -> Result<T> {
        let Some(init) = &mut self.init else {
            let mut mortal = Puppet::start(TaskId(0), 0, &[], self.place)?;
            let made = make(mortal.tid);
            mortal.end(0)?;
            return made;
        };
        // It has to be one of the PID namespace in which the tree is, where somebody must choose its ID. A number that
        // is free of processes may still be that of a group or session.
        let is_free = |id: &TaskId| !self.puppets.contains_key(id) && !self.zombies.contains_key(id);
        let mut born = (2..32768).map(TaskId).filter(is_free).filter_map(|id| {
            match init.spawn(Child { exit_signal: 0, ..Child::process(id) }) {
                Err(error) if error.code == code::PID_TAKEN => None,
                result => Some(result),
            }
        });
        let mut mortal =
            born.next().ok_or_else(|| Error::new(code::PID_TAKEN, "no process ID is free"))??;
        drop(born);
        let made = make(mortal.tid);
        mortal.end(0)?;
        let mut batch = Batch::new();
        let arguments = [mortal.id.0.into(), 0.into(), libc::__WALL.into(), 0.into()];
        batch.must("waiting for a process that has ended", libc::SYS_wait4, arguments);
        init.run(&batch)?;
        made
    }

    /// A path as the application has it, as this program reaches it.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        if self.root_directory.as_os_str().is_empty() {
            return path.to_path_buf();
        }
        self.root_directory.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The image's file, for page data.
    #[must_use]
    pub fn image_file(&self) -> &File {
        self.image.file()
    }

    /// The number of the image's descriptor in this program.
    #[must_use]
    pub fn image_descriptor(&self) -> i32 {
        self.image.file().as_raw_fd()
    }
}
