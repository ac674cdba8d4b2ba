//! What was written is what is read.

use std::fs::File;
use std::io::Write;
use vckpt_image_format::record::platform_name::PlatformName;
use vckpt_image_format::{Image, ImageWriter, Text};

#[test]
fn smoke() {
    let path = std::env::temp_dir().join(format!("vckpt-smoke-{}", std::process::id()));
    let mut writer = ImageWriter::new(Vec::new()).unwrap();
    let platform = PlatformName {
        node: Text::from("node"),
        domain: Text::from("domain"),
        release: Text::from("release"),
        version: Text::from("version"),
        machine: Text::from("machine"),
    };
    assert_eq!(writer.begin_page_section().unwrap(), 0);
    writer.pages(&vec![7; 4096 * 300]).unwrap();
    writer.pages(&vec![8; 4096]).unwrap();
    assert_eq!(writer.page_position(), 301);
    writer.record(&platform).unwrap();
    assert_eq!(writer.begin_page_section().unwrap(), 1);
    writer.pages(&vec![9; 4096 * 3]).unwrap();
    let bytes = writer.finish().unwrap();
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let image = Image::open(File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(image.one::<PlatformName>().unwrap(), platform);
    let section = image.page_section(1).unwrap();
    assert_eq!(section.pages, 3);
    let start = usize::try_from(section.offset).unwrap();
    assert!(bytes[start..start + 4096 * 3].iter().all(|&byte| byte == 9));
    assert_eq!(image.frames().count(), 1);
}
