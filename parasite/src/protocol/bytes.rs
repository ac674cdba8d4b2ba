//! The structures of the protocol as bytes and back, field by field, little-endian: for the supervisor, which thus
//! needs no unsafe code. The stub reads the same bytes in place, so the tests hold both against each other.

use super::{Boot, Call, Reply, Request};

/// Fills an array from its beginning.
struct Writer<const LENGTH: usize> {
    bytes: [u8; LENGTH],
    position: usize,
}

impl<const LENGTH: usize> Writer<LENGTH> {
    fn new() -> Self {
        Self { bytes: [0; LENGTH], position: 0 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        for (place, byte) in self.bytes.iter_mut().skip(self.position).zip(field) {
            *place = *byte;
        }
        self.position += field.len();
        self
    }
}

/// Takes fields from the beginning of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

impl Boot {
    /// As it stands at the beginning of a boot page.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.magic.to_le_bytes())
            .put(&self.version.to_le_bytes())
            .put(&self.mode.to_le_bytes())
            .put(&self.socket.to_le_bytes())
            .put(&self.peer.to_le_bytes())
            .put(&self.area.to_le_bytes())
            .put(&self.home.to_le_bytes())
            .put(&self.epitaph.to_le_bytes())
            .put(&self.epitaph_detail.to_le_bytes())
            .bytes
    }

    /// From the beginning of a boot page; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            magic: reader.u64()?,
            version: reader.u32()?,
            mode: reader.u32()?,
            socket: reader.i32()?,
            peer: reader.i32()?,
            area: reader.u64()?,
            home: reader.u64()?,
            epitaph: reader.u64()?,
            epitaph_detail: reader.u64()?,
        })
    }
}

impl Request {
    /// As it stands at the beginning of a request.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.version.to_le_bytes())
            .put(&self.call_count.to_le_bytes())
            .put(&self.data_length.to_le_bytes())
            .put(&self.reply_data_length.to_le_bytes())
            .bytes
    }

    /// From the beginning of a request; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            version: reader.u32()?,
            call_count: reader.u32()?,
            data_length: reader.u32()?,
            reply_data_length: reader.u32()?,
        })
    }
}

impl Reply {
    /// As it stands at the beginning of a reply.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.version.to_le_bytes())
            .put(&self.call_count.to_le_bytes())
            .put(&self.data_length.to_le_bytes())
            .put(&self.descriptor_count.to_le_bytes())
            .bytes
    }

    /// From the beginning of a reply; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            version: reader.u32()?,
            call_count: reader.u32()?,
            data_length: reader.u32()?,
            descriptor_count: reader.u32()?,
        })
    }
}

impl Call {
    /// As it stands in a request.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let with_number = Writer::new().put(&self.number.to_le_bytes());
        self.arguments
            .iter()
            .fold(with_number, |writer, argument| writer.put(&argument.to_le_bytes()))
            .put(&self.kinds)
            .put(&[self.flags, self.reserved])
            .bytes
    }

    /// From its place in a request; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let number = reader.u64()?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = reader.u64()?;
        }
        let kinds = reader.take()?;
        let [flags, reserved] = reader.take()?;
        Some(Self { number, arguments, kinds, flags, reserved })
    }
}
