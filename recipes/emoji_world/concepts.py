"""Which emoji become concepts of the world, and what they are called: the hand-made part of the data.

The icon sets share CLDR's names (`lady-beetle`); `emoji-datasource` gives each a subcategory. A subcategory listed in
KINDS is in, less the icons of WITHOUT; of other subcategories only the icons of EXTRA are. Faces, flags, hands, symbols
that are told apart by their lettering, near-doubles and icons that are whole scenes stay out: sixty-four pixels and a
small network cannot tell them apart, and every concept that is learned badly costs one that could be learned well.
"""

from __future__ import annotations

_TAUGHT = """
    robot; teddy bear; nesting dolls; ghost; dragon; dinosaur; snowman; ufo; dog face; dog; cat face; cat; rabbit; bear; panda; wolf; fox;
    lion; pig; cow; horse; elephant; monkey; mouse; bird; owl; duck; penguin; baby chick; frog; turtle; snail; fish; octopus; whale; crab;
    butterfly; honeybee; ladybug; teapot; teacup; coffee cup; bowl; vase; jar; bottle; can; candle; lantern; light bulb; clock; alarm clock;
    watch; hourglass; backpack; handbag; luggage; shoe; sneaker; hiking boot; boot; high heel; sandal; hat; top hat; cap; crown; glasses;
    sunglasses; t-shirt; dress; chair; couch; bed; house; car; taxi; bus; truck; tractor; bicycle; motorcycle; airplane;
    helicopter; rocket; sailboat; ship; guitar; drum; trumpet; violin; camera; television; radio; telephone; blue book; gift;
    balloon; key; bell; bucket; basket; soccer ball; basketball; red apple; banana; strawberry; pineapple; lemon; pumpkin; carrot;
    hamburger; pizza; doughnut; cake; ice cream cone; mushroom; cactus; potted plant; sunflower; rose; tree; palm tree; star; heart
"""
TAUGHT: frozenset[str] = frozenset(name.strip() for name in _TAUGHT.split(";"))
"""The concepts that the base learns: what people personalize, and clear silhouettes beside it. Two cores can show a
network each of them a few thousand times in a day; all 605 of the rules below, a few hundred times, which was seen to
teach none of
them.
"""

KINDS: dict[str, str] = {
    "arts & crafts": "",
    "event": "decoration",
    "game": "toy",
    "sport": "",
    "award-medal": "medal",
    "animal-amphibian": "animal",
    "animal-bird": "bird",
    "animal-bug": "insect",
    "animal-mammal": "animal",
    "animal-marine": "sea animal",
    "animal-reptile": "animal",
    "plant-flower": "flower",
    "plant-other": "plant",
    "dishware": "",
    "drink": "drink",
    "food-asian": "food",
    "food-fruit": "fruit",
    "food-prepared": "food",
    "food-sweet": "dessert",
    "food-vegetable": "vegetable",
    "book-paper": "",
    "clothing": "",
    "computer": "",
    "household": "",
    "light & video": "",
    "lock": "",
    "mail": "",
    "medical": "",
    "money": "",
    "music": "",
    "musical-instrument": "musical instrument",
    "office": "",
    "other-object": "",
    "phone": "phone",
    "science": "",
    "sound": "",
    "tool": "tool",
    "writing": "",
    "body-parts": "",
    "face-costume": "",
    "hotel": "",
    "place-building": "building",
    "place-geographic": "",
    "place-map": "",
    "place-other": "",
    "place-religious": "building",
    "sky & weather": "",
    "time": "clock",
    "transport-air": "vehicle",
    "transport-ground": "vehicle",
    "transport-water": "boat",
}
"""Subcategory -> the word for its class, used in captions that name no more than the class ("" for none)."""

_WITHOUT = """
    performing-arts ribbon fireworks sparkler tanabata-tree pine-decoration carp-streamer wind-chime moon-viewing-ceremony
    admission-tickets sparkles confetti-ball mahjong-red-dragon joker flower-playing-cards spade-suit club-suit heart-suit
    diamond-suit slot-machine 2nd-place-medal 3rd-place-medal 1st-place-medal military-medal flag-in-hole field-hockey
    cricket-game lacrosse rugby-football softball volleyball bowling running-shirt rosette wilted-flower white-flower
    service-dog guide-dog front-facing-baby-chick hatching-chick pig-nose two-hump-camel ewe water-buffalo bison ox wing
    microbe cricket mosquito spider-web worm blowfish spouting-whale sauropod leaf-fluttering-in-wind herb shamrock
    empty-nest seedling leafy-green fork-and-knife fork-and-knife-with-plate clinking-beer-mugs clinking-glasses pouring-liquid
    cocktail-glass oden dango fish-cake-with-swirl sake pot-of-food shallow-pan-of-food tamale stuffed-flatbread
    page-with-curl page-facing-up bookmark-tabs ledger notebook-with-decorative-cover closed-book green-book orange-book
    rolled-up-newspaper label bikini briefs one-piece-swimsuit womans-clothes prayer-beads sari clutch-bag
    computer-disk dvd trackball low-battery elevator lotion-bottle mouse-trap bubbles razor camera-with-flash video-camera
    film-frames magnifying-glass-tilted-right videocassette locked-with-pen locked-with-key unlocked outbox-tray inbox-tray
    e-mail incoming-envelope envelope-with-arrow closed-mailbox-with-lowered-flag open-mailbox-with-raised-flag
    open-mailbox-with-lowered-flag ballot-box-with-ballot drop-of-blood x-ray yen-banknote euro-banknote pound-banknote
    chart-increasing-with-yen money-with-wings receipt level-slider control-knobs studio-microphone musical-note musical-score
    musical-keyboard open-file-folder calendar card-index chart-increasing chart-decreasing bar-chart round-pushpin
    linked-paperclips card-index-dividers card-file-box spiral-calendar triangular-ruler cigarette nazar-amulet placard
    identification-card hamsa coffin funeral-urn pager mobile-phone-with-arrow petri-dish muted-speaker speaker-low-volume
    speaker-medium-volume bell-with-slash link hammer-and-wrench hammer-and-pick broken-chain white-cane clamp black-nib memo
    eye nose mouth tongue leg foot ear ear-with-hearing-aid mechanical-leg lungs biting-lip anatomical-heart eyes
    flexed-biceps ogre goblin clown-face pile-of-poo
    building-construction houses derelict-house japanese-post-office love-hotel hotel bank wedding hut
    convenience-store department-store post-office stadium brick rock snow-capped-mountain camping beach-with-umbrella desert
    national-park globe-showing-europe-africa globe-showing-asia-australia globe-with-meridians map-of-japan mount-fuji
    foggy night-with-stars sunrise-over-mountains sunrise cityscape-at-dusk sunset bridge-at-night barber-pole cityscape
    hot-springs kaaba hindu-temple synagogue
    cyclone water-wave milky-way new-moon waxing-crescent-moon first-quarter-moon waxing-gibbous-moon waning-gibbous-moon
    last-quarter-moon waning-crescent-moon new-moon-face first-quarter-moon-face last-quarter-moon-face full-moon-face
    sun-with-face glowing-star shooting-star sun-behind-small-cloud sun-behind-large-cloud sun-behind-rain-cloud fog wind-face
    umbrella-with-rain-drops cloud-with-lightning-and-rain snowman-without-snow closed-umbrella umbrella droplet
    two-oclock three-oclock four-oclock five-oclock six-oclock seven-oclock eight-oclock nine-oclock ten-oclock eleven-oclock
    twelve-oclock one-thirty two-thirty three-thirty four-thirty five-thirty six-thirty seven-thirty eight-thirty nine-thirty
    ten-thirty eleven-thirty twelve-thirty hourglass-not-done
    suspension-railway mountain-cableway airplane-departure airplane-arrival small-airplane seat light-rail metro station
    tram-car bus-stop oncoming-bus trolleybus oncoming-police-car oncoming-taxi oncoming-automobile railway-car high-speed-train
    train monorail mountain-railway construction motorway railway-track horizontal-traffic-light manual-wheelchair
    motor-boat passenger-ship
"""
WITHOUT: frozenset[str] = frozenset(_WITHOUT.split())

EXTRA: dict[str, str] = {
    "skull": "",
    "red-heart": "heart",
    "broken-heart": "heart",
    "hole": "",
    "astronaut": "person",
    "cook": "person",
    "farmer": "person",
    "firefighter": "person",
    "police-officer": "person",
    "construction-worker": "person",
    "detective": "person",
    "guard": "person",
    "ninja": "person",
    "princess": "person",
    "prince": "person",
    "pilot": "person",
    "santa-claus": "person",
    "mage": "person",
    "man-mage": "person",
    "woman-fairy": "person",
    "man-vampire": "person",
    "man-zombie": "person",
    "baby": "person",
    "boy": "person",
    "girl": "person",
    "man": "person",
    "woman": "person",
    "old-man": "person",
    "old-woman": "person",
    "pirate-flag": "flag",
    "chequered-flag": "flag",
    "triangular-flag": "flag",
}
"""Icons of other subcategories that are in, with the word for their class."""

NAMES: dict[str, str] = {
    "amphora": "vase",
    "automobile": "car",
    "aerial-tramway": "cable car",
    "beverage-box": "juice box",
    "billed-cap": "cap",
    "bowl-with-spoon": "bowl",
    "bottle-with-popping-cork": "bottle",
    "bullseye": "dartboard",
    "canned-food": "can",
    "carpentry-saw": "saw",
    "cheese-wedge": "cheese",
    "chess-pawn": "pawn",
    "chequered-flag": "checkered flag",
    "classical-building": "temple",
    "cloud-with-lightning": "thundercloud",
    "cloud-with-rain": "rain cloud",
    "cloud-with-snow": "snow cloud",
    "closed-mailbox-with-raised-flag": "mailbox",
    "collision": "explosion",
    "cooked-rice": "rice",
    "cooking": "frying pan",
    "couch-and-lamp": "couch",
    "cow-face": "cow face",
    "crossed-swords": "swords",
    "cup-with-straw": "soda cup",
    "cut-of-meat": "steak",
    "deciduous-tree": "tree",
    "desktop-computer": "computer",
    "diya-lamp": "oil lamp",
    "dollar-banknote": "banknote",
    "ear-of-corn": "corn",
    "electric-plug": "plug",
    "evergreen-tree": "pine tree",
    "fire-engine": "fire truck",
    "flat-shoe": "ballerina shoe",
    "flying-disc": "frisbee",
    "flying-saucer": "ufo",
    "folding-hand-fan": "fan",
    "four-leaf-clover": "clover",
    "fried-shrimp": "tempura",
    "game-die": "dice",
    "garlic": "garlic",
    "glass-of-milk": "glass of milk",
    "globe-showing-americas": "globe",
    "goal-net": "goal",
    "green-salad": "salad",
    "heavy-dollar-sign": "dollar sign",
    "high-heeled-shoe": "high heel",
    "high-voltage": "lightning bolt",
    "hot-beverage": "coffee cup",
    "hot-pepper": "chili pepper",
    "hourglass-done": "hourglass",
    "house-with-garden": "cottage",
    "ice-hockey": "hockey stick",
    "jack-o-lantern": "pumpkin",
    "japanese-castle": "pagoda",
    "japanese-dolls": "dolls",
    "lady-beetle": "ladybug",
    "light-bulb": "light bulb",
    "leaf-fluttering-in-wind": "leaf",
    "locked": "padlock",
    "long-drum": "conga drum",
    "man-mage": "wizard",
    "man-vampire": "vampire",
    "man-zombie": "zombie",
    "woman-fairy": "fairy",
    "cook": "chef",
    "mans-shoe": "shoe",
    "martial-arts-uniform": "karate uniform",
    "magnifying-glass-tilted-left": "magnifying glass",
    "mantelpiece-clock": "mantel clock",
    "mate": "mate cup",
    "meat-on-bone": "meat",
    "mechanical-arm": "robot arm",
    "motorized-wheelchair": "wheelchair",
    "mobile-phone": "mobile phone",
    "nest-with-eggs": "nest",
    "nut-and-bolt": "bolt",
    "one-oclock": "clock",
    "optical-disk": "cd",
    "package": "cardboard box",
    "paw-prints": "paw prints",
    "poultry-leg": "drumstick",
    "ping-pong": "table tennis paddle",
    "pool-8-ball": "billiard ball",
    "police-car-light": "siren",
    "red-envelope": "red envelope",
    "red-heart": "heart",
    "red-paper-lantern": "lantern",
    "rescue-workers-helmet": "helmet",
    "reminder-ribbon": "ribbon",
    "ringed-planet": "planet",
    "roasted-sweet-potato": "sweet potato",
    "roll-of-paper": "toilet paper",
    "running-shoe": "sneaker",
    "service-dog": "service dog",
    "sheaf-of-rice": "wheat",
    "sport-utility-vehicle": "jeep",
    "speaker-high-volume": "loudspeaker",
    "loudspeaker": "horn speaker",
    "spiral-notepad": "notepad",
    "spiral-shell": "seashell",
    "statue-of-liberty": "statue of liberty",
    "steaming-bowl": "noodle soup",
    "sun-behind-cloud": "sun behind a cloud",
    "t-rex": "dinosaur",
    "t-shirt": "t-shirt",
    "tear-off-calendar": "calendar",
    "teacup-without-handle": "teacup",
    "telephone-receiver": "telephone receiver",
    "thong-sandal": "flip flop",
    "triangular-flag": "red flag",
    "tumbler-glass": "whiskey glass",
    "umbrella-on-ground": "beach umbrella",
    "vertical-traffic-light": "traffic light",
    "wastebasket": "trash can",
    "water-pistol": "water gun",
    "womans-boot": "boot",
    "womans-hat": "hat",
    "womans-sandal": "sandal",
    "wrapped-gift": "gift",
    "takeout-box": "takeout box",
    "articulated-lorry": "truck",
    "bubble-tea": "bubble tea",
    "bento-box": "bento box",
    "performing-arts": "theater masks",
    "closed-umbrella": "closed umbrella",
    "baguette-bread": "baguette",
    "brown-mushroom": "brown mushroom",
    "soft-ice-cream": "ice cream cone",
    "ice-cream": "ice cream bowl",
    "custard": "pudding",
    "shortcake": "cake",
    "kiwi-fruit": "kiwi",
    "pick": "pickaxe",
    "framed-picture": "picture frame",
    "alien-monster": "space invader",
}
"""CLDR's name -> the primary name here; the others only lose their hyphens."""

ALSO: dict[str, tuple[str, ...]] = {
    "airplane": ("plane",),
    "alarm clock": ("ringing clock",),
    "backpack": ("rucksack", "school bag"),
    "bicycle": ("bike",),
    "boot": ("leather boot",),
    "bowl": ("cereal bowl",),
    "can": ("tin can",),
    "candle": ("burning candle",),
    "car": ("automobile", "red car"),
    "cat face": ("kitten", "cat head"),
    "coffee cup": ("mug", "cup of coffee"),
    "couch": ("sofa",),
    "dinosaur": ("t rex",),
    "dog face": ("puppy", "dog head"),
    "gift": ("present", "gift box"),
    "glasses": ("eyeglasses", "spectacles"),
    "mobile phone": ("smartphone",),
    "rabbit": ("bunny",),
    "robot": ("robot head", "toy robot"),
    "shoe": ("leather shoe",),
    "sneaker": ("running shoe", "sports shoe"),
    "teddy bear": ("stuffed animal", "plush toy", "plushie"),
    "television": ("tv",),
    "vase": ("jug", "clay vase"),
    "baby chick": ("chick",),
    "duck": ("mallard",),
    "teapot": ("tea pot", "kettle"),
    "clock": ("wall clock",),
}
"""More names, on top of emoji-datasource's short names; a name that two concepts could claim is used for neither."""

CLASSES: dict[str, str] = {
    **dict.fromkeys(
        (
            "shoe",
            "sneaker",
            "boot",
            "hiking boot",
            "high heel",
            "ballerina shoe",
            "sandal",
            "flip flop",
            "ballet shoes",
        ),
        "shoe",
    ),
    **dict.fromkeys(("hat", "top hat", "cap", "graduation cap", "crown", "helmet", "military helmet"), "hat"),
    **dict.fromkeys(("glasses", "sunglasses", "goggles"), "glasses"),
    **dict.fromkeys(("backpack", "handbag", "purse", "shopping bags", "luggage", "briefcase"), "bag"),
    **dict.fromkeys(
        ("t-shirt", "jeans", "dress", "kimono", "lab coat", "safety vest", "coat", "scarf", "socks", "shorts"),
        "piece of clothing",
    ),
    **dict.fromkeys(("bowl", "noodle soup", "salad", "rice"), "bowl"),
    **dict.fromkeys(
        ("robot", "teddy bear", "nesting dolls", "yo-yo", "kite", "balloon", "dolls", "water gun", "puzzle piece"),
        "toy",
    ),
    **dict.fromkeys(("dog", "dog face", "poodle"), "dog"),
    **dict.fromkeys(("cat", "cat face", "black cat"), "cat"),
    **dict.fromkeys(("car", "taxi", "police car", "jeep", "racing car", "pickup truck"), "car"),
    **dict.fromkeys(("truck", "delivery truck", "fire truck"), "truck"),
    **dict.fromkeys(("basketball", "soccer ball", "baseball", "tennis", "american football", "billiard ball"), "ball"),
    **dict.fromkeys(("candle", "lantern", "oil lamp", "flashlight", "light bulb"), "light"),
    **dict.fromkeys(("tree", "pine tree", "palm tree", "christmas tree"), "tree"),
    **dict.fromkeys(("beer mug", "wine glass", "whiskey glass", "glass of milk", "tropical drink"), "glass"),
    **dict.fromkeys(("coffee cup", "teacup", "mate cup", "soda cup"), "cup"),
    **dict.fromkeys(("books", "open book", "blue book", "notebook"), "book"),
    **dict.fromkeys(("ship", "ferry", "sailboat", "speedboat", "canoe"), "boat"),
    **dict.fromkeys(("snail", "spider", "scorpion"), "animal"),
    **dict.fromkeys(
        ("wood", "siren", "wheel", "oil drum", "fuel pump", "traffic light", "stop sign", "roller skate", "skateboard"),
        "",
    ),
    **dict.fromkeys(
        ("anchor", "ring buoy", "teapot", "can", "ice", "bottle", "paw prints", "ticket", "ribbon", "feather", "nest"),
        "",
    ),
    **dict.fromkeys(
        ("dartboard", "crystal ball", "magic wand", "video game", "joystick", "mirror ball", "pawn", "parachute"), ""
    ),
    **dict.fromkeys(
        ("hourglass", "fax machine", "dinosaur", "salt", "butter", "honey pot", "statue of liberty", "baby bottle"), ""
    ),
}
"""Primary name -> the word for its class, where that of its subcategory is too wide."""

NOT_NAMES: frozenset[str] = frozenset(
    {
        *(
            "sleuth or spy",
            "three button mouse",
            "mag",
            "mega",
            "feet",
            "birthday",
            "soccer",
            "art",
            "tea",
            "office",
            "gun",
        ),
        *(
            "male mage",
            "male vampire",
            "male zombie",
            "female fairy",
            "woman fairy",
            "coffee",
            "curry",
            "mate",
            "one oclock",
        ),
        *(
            "octagonal sign",
            "bullettrain front",
            "earth americas",
            "globe showing americas",
            "european castle",
            "tada",
            "dart",
        ),
        *(
            "lower left crayon",
            "lower left paintbrush",
            "dark sunglasses",
            "telephone receiver red",
            "loud sound",
            "tornado cloud",
        ),
        *(
            "mans shoe",
            "womans hat",
            "womans boot",
            "womans sandal",
            "womans flat shoe",
            "iphone",
            "flipper",
            "hocho",
            "ski",
        ),
        *(
            "speaker high volume",
            "lightning",
            "scales",
            "rotating light",
            "package",
            "dagger knife",
            "pick",
            "mortar board",
            "fuelpump",
        ),
        *(
            "cooking",
            "lock",
            "chess pawn",
            "guardsman",
            "cop",
            "dollar",
            "umbrella on ground",
            "izakaya lantern",
            "drum with drumsticks",
        ),
        *(
            "hot beverage",
            "spiral note pad",
            "tophat",
            "tshirt",
            "icecream",
            "mate drink",
            "school satchel",
            "moyai",
            "ear of rice",
        ),
        *(
            "teacup without handle",
            "flat shoe",
            "dromedary camel",
            "frame with picture",
            "steaming bowl",
            "amphora",
            "clapper",
        ),
    }
)
"""Short names and icon names that read badly in a caption."""

PLURALS: dict[str, str] = {
    "mouse": "mice",
    "goose": "geese",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "scarf": "scarves",
    "tooth": "teeth",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "moose": "moose",
    "man": "men",
    "woman": "women",
    "dice": "dice",
    "glass of milk": "glasses of milk",
    "cup of coffee": "cups of coffee",
    "ear of corn": "ears of corn",
    "bow and arrow": "bows and arrows",
    "sun behind a cloud": "suns behind clouds",
    "nest with eggs": "nests with eggs",
    "meat on bone": "meat",
}
"""A name or its last word -> its plural, where no rule makes it."""

_UNCOUNTED = """
    glasses sunglasses goggles scissors jeans shorts gloves socks skis swords books bacon bread rice butter salt spaghetti popcorn
    peanuts grapes cherries blueberries beans fire sushi ice salad broccoli corn wheat garlic soap chopsticks chains paw prints
    maracas pancakes cheese dolls fries meat tennis badminton wood coral tempura notes headphones headphone eyeglasses spectacles
    champagne beer ramen bento lipstick lightning
"""
UNCOUNTED: frozenset[str] = frozenset(_UNCOUNTED.split()) | {
    "paw prints",
    "toilet paper",
    "ballet shoes",
    "shopping bags",
    "french fries",
    "statue of liberty",
    "curry rice",
    "karate uniform",
}
"""Names (or their last words) that take no article and no number."""
