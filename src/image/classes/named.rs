//! Class lists of semantic data sets, in the order of the networks.

/// Class lists by the name that a user gives: whether COCO's things come first, and the names.
const LISTS: [(&str, bool, &[&str]); 3] =
    [("ade20k", false, &ADE20K), ("cityscapes", false, &CITYSCAPES), ("coco-stuff", true, &COCO_STUFF)];

/// The classes of a data set, by its name in lower case: `ade20k` (the 150 of the scene parsing challenge),
/// `cityscapes` (the 19 that are evaluated) or `coco-stuff` (the 171 of COCO-Stuff 164k).
pub fn list(name: &str) -> Option<Vec<&'static str>> {
    let &(_, after_things, list) = LISTS.iter().find(|(known, ..)| *known == name)?;
    let things = super::coco().iter().filter(|class| after_things && class.is_thing);
    Some(things.map(|class| &*class.name).chain(list.iter().copied()).collect())
}

/// Names that [`list`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    LISTS.iter().map(|(name, ..)| *name)
}

/// As mmsegmentation's `ADE20KDataset` has them; labels of the data set are one more, 0 being none of them.
#[rustfmt::skip]
pub(crate) static ADE20K: [&str; 150] = [
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair",
    "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion",
    "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace",
    "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway",
    "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel",
    "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver",
    "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet",
    "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool",
    "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball",
    "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
];

#[rustfmt::skip]
static CITYSCAPES: [&str; 19] = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
];

/// Stuff of COCO-Stuff, as mmsegmentation's `COCOStuffDataset` has it behind COCO's things.
#[rustfmt::skip]
static COCO_STUFF: [&str; 91] = [
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter",
    "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble", "floor-other",
    "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other", "fruit", "furniture-other",
    "grass", "gravel", "ground-other", "hill", "house", "leaves", "light", "mat",
    "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad",
    "river", "road", "rock", "roof", "rug", "salad", "sand", "sea",
    "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick",
    "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops",
    "window-blind", "window-other", "wood",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_list_names_a_class_twice() {
        for (name, count) in [("ade20k", 150), ("cityscapes", 19), ("coco-stuff", 171)] {
            let list = list(name).unwrap();
            assert_eq!(list.iter().collect::<HashSet<_>>().len(), count, "{name}");
            assert_eq!(list.len(), count, "{name}");
        }
        assert!(names().all(|name| list(name).is_some()));
        assert_eq!(list("voc"), None);
    }
}
