"""The 16 places of the world, each a function of a random source: a drawing, and the ground to stand on."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

from .drawing import SIZE, Ground, clouds, disc, fade, grain, hills, near, pine, sky, stars


def beach(random: Random) -> tuple[Image.Image, Ground]:
    image, shore = sky(random), random.uniform(58, 78)
    pen, sea = ImageDraw.Draw(image), shore - random.uniform(14, 22)
    if random.random() < 0.5:
        disc(pen, random.uniform(10, 118), random.uniform(10, 24), random.uniform(6, 10), (255, 238, 150))
    clouds(random, pen, random.randrange(3), 24)
    pen.rectangle((0, sea, SIZE, SIZE), fill=near(random, (34, 140, 200)))
    hills(random, pen, shore - 3, 3, (236, 248, 250))
    hills(random, pen, shore, 3, near(random, (240, 214, 150)))
    grain(random, image, 4, int(shore) + 4)
    if random.random() < 0.35:
        side, height = random.choice((random.uniform(4, 20), random.uniform(108, 124))), random.uniform(44, 60)
        foot = shore + random.uniform(6, 16)
        pen.line([(side, foot), (side + 3, foot - height / 2), (side + 2, foot - height)], fill=(124, 88, 54), width=5)
        for k in range(6):
            turn = k * math.pi / 3 + 0.3
            tip = (side + 2 + 19 * math.cos(turn), foot - height + 9 * math.sin(turn) + 5)
            pen.line([(side + 2, foot - height), tip], fill=near(random, (46, 140, 70)), width=5)
    return image, (shore / SIZE + 0.1, 0.97)


def snow(random: Random) -> tuple[Image.Image, Ground]:
    image, height = (
        fade([(0, near(random, (160, 190, 220), 24)), (0.7, near(random, (226, 236, 244), 8))]),
        random.uniform(60, 80),
    )
    pen = ImageDraw.Draw(image)
    hills(random, pen, height - 12, 6, near(random, (214, 226, 240), 8))
    for _ in range(random.randrange(5)):
        pine(
            pen,
            random.uniform(0, SIZE),
            height + random.uniform(-8, 4),
            random.uniform(22, 44),
            near(random, (40, 92, 82)),
        )
    hills(random, pen, height, 4, near(random, (246, 250, 254), 5))
    for _ in range(random.randrange(10, 40)):
        disc(pen, random.uniform(0, SIZE), random.uniform(0, SIZE), random.choice((1.0, 1.5, 2.0)), (255, 255, 255))
    return image, (height / SIZE + 0.1, 0.97)


def grass(random: Random) -> tuple[Image.Image, Ground]:
    image, height = sky(random), random.uniform(56, 76)
    pen, green = ImageDraw.Draw(image), near(random, (104, 178, 74), 18)
    clouds(random, pen, random.randrange(4), 34)
    hills(random, pen, height - 8, 5, near(random, (130, 196, 100)))
    hills(random, pen, height, 3, green)
    for _ in range(60):
        x, y = random.uniform(0, SIZE), random.uniform(height + 4, SIZE)
        pen.line([(x, y), (x + random.uniform(-2, 2), y - random.uniform(3, 6))], fill=near(random, green, 26), width=1)
    return image, (height / SIZE + 0.08, 0.97)


def space(random: Random) -> tuple[Image.Image, Ground]:
    dark = near(random, (12, 10, 34), 10)
    image = fade([(0, dark), (0.5, near(random, (40, 20, 76), 18)), (1, dark)], random.uniform(0.1, 3))
    pen = ImageDraw.Draw(image)
    stars(random, pen, random.randrange(40, 90), SIZE)
    if random.random() < 0.6:
        x, y, r = (
            random.uniform(8, 120),
            random.choice((random.uniform(8, 30), random.uniform(98, 120))),
            random.uniform(7, 16),
        )
        colour = near(random, random.choice(((220, 140, 90), (110, 160, 220), (190, 120, 200), (230, 200, 130))))
        disc(pen, x, y, r, colour)
        if random.random() < 0.5:
            pen.arc(
                (x - 1.7 * r, y - 0.5 * r, x + 1.7 * r, y + 0.5 * r),
                -20,
                200,
                fill=near(random, (230, 220, 200)),
                width=2,
            )
    return image, None


def moon(random: Random) -> tuple[Image.Image, Ground]:
    image, height, grey = (
        fade([(0, (6, 6, 18)), (1, (22, 24, 44))]),
        random.uniform(58, 80),
        near(random, (168, 168, 174), 16),
    )
    pen = ImageDraw.Draw(image)
    stars(random, pen, random.randrange(24, 60), height)
    if random.random() < 0.5:
        x, y, r = random.uniform(12, 116), random.uniform(12, 30), random.uniform(7, 11)
        disc(pen, x, y, r, (60, 120, 210))
        disc(pen, x - r * 0.3, y + r * 0.2, r * 0.45, (90, 170, 90))
        disc(pen, x + r * 0.3, y - r * 0.4, r * 0.35, (240, 244, 250), 0.5)
    hills(random, pen, height, 3, grey)
    for _ in range(random.randrange(5, 11)):
        y = random.uniform(height + 6, SIZE)
        r = 2 + 9 * (y - height) / (SIZE - height) * random.uniform(0.5, 1.2)
        x = random.uniform(0, SIZE)
        disc(pen, x, y, r, tuple(c - 46 for c in grey), 0.4)
        disc(pen, x, y + r * 0.12, r * 0.86, tuple(c - 22 for c in grey), 0.36)
    grain(random, image, 4, int(height) + 5)
    return image, (height / SIZE + 0.08, 0.97)


def city(random: Random) -> tuple[Image.Image, Ground]:
    night = random.random() < 0.45
    image = (
        fade([(0, near(random, (22, 26, 58))), (0.7, near(random, (86, 70, 120)))])
        if night
        else sky(random, (236, 226, 214))
    )
    pen, street = ImageDraw.Draw(image), random.uniform(82, 96)
    if night:
        stars(random, pen, 16, 40)
    x = -random.uniform(0, 10)
    while x < SIZE:
        width, top = random.uniform(13, 24), random.uniform(14, 58)
        wall = near(
            random,
            random.choice(
                ((52, 54, 82), (66, 60, 96), (44, 62, 90))
                if night
                else ((150, 160, 178), (196, 150, 128), (176, 178, 190))
            ),
        )
        pen.rectangle((x, top, x + width, street), fill=wall)
        for row in range(int(top) + 4, int(street) - 4, 8):
            for column in range(int(x) + 3, int(x + width) - 3, 6):
                lit = random.random() < 0.55
                pane = (
                    ((255, 220, 120) if lit else (34, 36, 56))
                    if night
                    else ((210, 232, 246) if lit else (110, 130, 156))
                )
                pen.rectangle((column, row, column + 2, row + 3), fill=pane)
        x += width + random.choice((0, 0, 3))
    pen.rectangle((0, street, SIZE, SIZE), fill=near(random, (70, 72, 80) if night else (124, 126, 132)))
    pen.rectangle((0, street, SIZE, street + 4), fill=near(random, (128, 126, 126) if night else (190, 188, 184)))
    for k in range(4):
        pen.rectangle((k * 36 + 6, street + 17, k * 36 + 24, street + 19), fill=(230, 226, 200))
    return image, (street / SIZE + 0.03, 0.97)


def wood(random: Random) -> tuple[Image.Image, Ground]:
    brown, wall = (
        near(random, random.choice(((186, 130, 78), (150, 98, 58), (210, 166, 112)))),
        random.choice((0, random.uniform(36, 60))),
    )
    image = Image.new("RGB", (SIZE, SIZE), brown)
    pen, y, step = ImageDraw.Draw(image), float(wall), 5.0 if wall else 16.0
    while y < SIZE:
        pen.rectangle((0, y, SIZE, y + step), fill=near(random, brown, 12))
        seam = random.uniform(0, SIZE)
        pen.line([(seam, y), (seam, y + step)], fill=tuple(c * 6 // 10 for c in brown), width=1)
        pen.line([(0, y), (SIZE, y)], fill=tuple(c * 6 // 10 for c in brown), width=1)
        y, step = y + step, step * (1.3 if wall else 1.0)
    grain(random, image, 5, int(wall), 16)
    if wall:
        pen.rectangle(
            (0, 0, SIZE, wall - 5),
            fill=near(random, random.choice(((236, 230, 216), (196, 214, 220), (226, 200, 190)))),
        )
        pen.rectangle((0, wall - 5, SIZE, wall), fill=near(random, (246, 244, 240), 6))
    return image, (wall / SIZE + 0.12 if wall else 0.5, 0.95)


def water(random: Random) -> tuple[Image.Image, Ground]:
    image = fade([(0, near(random, (70, 180, 220))), (1, near(random, (10, 60, 130)))])
    pen, bed = ImageDraw.Draw(image, "RGBA"), random.uniform(104, 118)
    for _ in range(random.randrange(4)):
        x = random.uniform(0, SIZE)
        pen.polygon([(x, 0), (x + 8, 0), (x + random.uniform(10, 34), SIZE), (x - 14, SIZE)], fill=(255, 255, 255, 26))
    if random.random() < 0.75:
        hills(random, pen, bed, 3, near(random, (196, 178, 128)))
        for _ in range(random.randrange(2, 7)):
            x, height = random.uniform(0, SIZE), random.uniform(14, 36)
            weed = [(x + 3 * math.sin(k * 1.3 + x), bed + 6 - height * k / 6) for k in range(7)]
            pen.line(weed, fill=near(random, (40, 150, 90)), width=4)
    for _ in range(random.randrange(6, 18)):
        x, y, r = random.uniform(0, SIZE), random.uniform(0, SIZE), random.uniform(1.5, 4)
        pen.ellipse((x - r, y - r, x + r, y + r), outline=(220, 244, 255, 200), width=1)
    return image, None


def desert(random: Random) -> tuple[Image.Image, Ground]:
    image, height = (
        fade([(0, near(random, (110, 180, 226))), (0.6, near(random, (250, 226, 176)))]),
        random.uniform(60, 78),
    )
    pen = ImageDraw.Draw(image)
    disc(pen, random.uniform(10, 118), random.uniform(10, 30), random.uniform(6, 10), (255, 244, 190))
    if random.random() < 0.35:
        x, half = random.uniform(20, 108), random.uniform(14, 26)
        pen.polygon([(x - half, height), (x + half, height), (x, height - half)], fill=(214, 168, 96))
        pen.polygon([(x + half / 3, height), (x + half, height), (x, height - half)], fill=(176, 130, 70))
    hills(random, pen, height - 5, 5, near(random, (226, 178, 106)))
    hills(random, pen, height + 4, 6, near(random, (238, 192, 116)))
    for _ in range(random.randrange(4)):
        x, foot, tall = (
            random.choice((random.uniform(0, 34), random.uniform(94, SIZE))),
            height + random.uniform(2, 12),
            random.uniform(14, 24),
        )
        green = near(random, (62, 130, 76))
        pen.line([(x, foot), (x, foot - tall)], fill=green, width=5)
        pen.line([(x, foot - tall / 2), (x + 6, foot - tall / 2), (x + 6, foot - tall * 0.8)], fill=green, width=3)
    return image, (height / SIZE + 0.1, 0.97)


def sunset(random: Random) -> tuple[Image.Image, Ground]:
    height = random.uniform(64, 84)
    stops = [
        (0, near(random, (70, 44, 120), 20)),
        (0.35, near(random, (230, 90, 100), 20)),
        (0.62, near(random, (255, 180, 80), 12)),
    ]
    image = fade(stops)
    pen, x = ImageDraw.Draw(image), random.uniform(24, 104)
    disc(pen, x, height - random.uniform(0, 12), random.uniform(10, 17), (255, 236, 150))
    if random.random() < 0.5:
        pen.rectangle((0, height, SIZE, SIZE), fill=near(random, (126, 60, 110)))
        for k in range(7):
            half, y = random.uniform(4, 14), height + 3 + 6 * k
            pen.rectangle((x - half, y, x + half, y + 2), fill=(255, 190, 110))
    else:
        hills(random, pen, height - 3, 5, near(random, (110, 50, 90)))
        hills(random, pen, height + 6, 4, near(random, (62, 34, 62)))
    return image, (height / SIZE + 0.1, 0.97)


def mountains(random: Random) -> tuple[Image.Image, Ground]:
    image, height, stone = sky(random), random.uniform(68, 84), near(random, (120, 126, 146))
    pen = ImageDraw.Draw(image)
    clouds(random, pen, random.randrange(3), 20)
    for x in sorted(random.uniform(0, SIZE) for _ in range(random.randrange(3, 6))):
        half, peak, tint = random.uniform(26, 46), random.uniform(14, 44), near(random, stone)
        pen.polygon([(x - half, height + 4), (x + half, height + 4), (x, peak)], fill=tint)
        cap = (height + 4 - peak) * 0.3
        slope = half / (height + 4 - peak) * cap
        pen.polygon(
            [
                (x, peak),
                (x - slope, peak + cap),
                (x - slope / 3, peak + cap * 0.7),
                (x, peak + cap),
                (x + slope / 3, peak + cap * 0.7),
                (x + slope, peak + cap),
            ],
            fill=(246, 248, 252),
        )
    hills(random, pen, height, 4, near(random, (92, 150, 84)))
    for _ in range(random.randrange(5)):
        pine(
            pen,
            random.uniform(0, SIZE),
            height + random.uniform(0, 8),
            random.uniform(10, 20),
            near(random, (36, 96, 64)),
        )
    return image, (height / SIZE + 0.08, 0.97)


def room(random: Random) -> tuple[Image.Image, Ground]:
    wall = near(
        random, random.choice(((232, 222, 200), (190, 210, 222), (222, 190, 186), (200, 216, 186), (240, 216, 150)))
    )
    image, floor = Image.new("RGB", (SIZE, SIZE), wall), random.uniform(78, 92)
    pen = ImageDraw.Draw(image)
    if random.random() < 0.4:
        for stripe in range(0, SIZE, 12):
            pen.rectangle((stripe, 0, stripe + 5, floor), fill=near(random, wall, 8))
    x, y = random.uniform(6, 76), random.uniform(8, 20)
    pen.rectangle((x, y, x + 42, y + 38), fill=(250, 248, 244))
    if random.random() < 0.6:  # a window, else a picture
        pen.rectangle((x + 4, y + 4, x + 38, y + 34), fill=near(random, (150, 206, 244)))
        pen.line([(x + 21, y), (x + 21, y + 38)], fill=(250, 248, 244), width=3)
        pen.line([(x, y + 19), (x + 42, y + 19)], fill=(250, 248, 244), width=3)
    else:
        pen.rectangle((x + 2, y + 2, x + 40, y + 36), fill=near(random, (140, 96, 60)))
        pen.rectangle(
            (x + 6, y + 6, x + 36, y + 32),
            fill=near(random, random.choice(((220, 120, 90), (90, 150, 130), (230, 200, 120)))),
        )
    pen.rectangle(
        (0, floor, SIZE, SIZE), fill=near(random, random.choice(((176, 128, 84), (150, 112, 96), (196, 176, 150))))
    )
    pen.rectangle((0, floor - 4, SIZE, floor), fill=near(random, (244, 240, 232), 6))
    return image, (floor / SIZE + 0.04, 0.96)


def forest(random: Random) -> tuple[Image.Image, Ground]:
    image, height = (
        fade([(0, near(random, (150, 200, 150))), (0.7, near(random, (206, 230, 186)))]),
        random.uniform(80, 94),
    )
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height, SIZE, SIZE), fill=near(random, (92, 118, 58)))
    for depth in range(3):
        for _ in range(5):
            x, half = random.uniform(-4, SIZE), 2 + depth * 1.5
            bark = near(random, ((140, 150, 120), (112, 92, 70), (84, 60, 44))[depth], 8)
            pen.rectangle((x - half, 0, x + half, height - 4 + 5 * depth), fill=bark)
        for _ in range(9):
            disc(
                pen,
                random.uniform(0, SIZE),
                random.uniform(-6, 12 + 6 * (2 - depth)),
                random.uniform(10, 17),
                near(random, ((120, 176, 110), (76, 146, 80), (42, 112, 60))[depth], 10),
            )
    grain(random, image, 4, int(height) + 2)
    return image, (height / SIZE + 0.06, 0.97)


def table(random: Random) -> tuple[Image.Image, Ground]:
    tile = near(random, random.choice(((238, 238, 236), (176, 206, 216), (226, 196, 170), (150, 180, 150))))
    image, edge = Image.new("RGB", (SIZE, SIZE), tile), random.uniform(72, 88)
    pen = ImageDraw.Draw(image)
    for k in range(0, SIZE, 16):
        pen.line([(k, 0), (k, edge)], fill=tuple(c - 26 for c in tile), width=1)
        pen.line([(0, k), (SIZE, k)], fill=tuple(c - 26 for c in tile), width=1)
    if random.random() < 0.5:
        x = random.uniform(16, 112)
        pen.line([(x, 0), (x, 14)], fill=(50, 50, 54), width=2)
        pen.polygon(
            [(x - 12, 26), (x + 12, 26), (x + 4, 13), (x - 4, 13)],
            fill=near(random, random.choice(((220, 70, 60), (60, 66, 76), (240, 190, 70)))),
        )
    top = near(random, random.choice(((168, 112, 66), (214, 176, 128), (240, 240, 238), (90, 60, 42))))
    pen.rectangle((0, edge, SIZE, SIZE - 10), fill=top)
    pen.rectangle((0, SIZE - 10, SIZE, SIZE), fill=tuple(c * 3 // 4 for c in top))
    grain(random, image, 5, int(edge), 8)
    return image, (edge / SIZE + 0.05, 0.9)


def road(random: Random) -> tuple[Image.Image, Ground]:
    image, height = sky(random), random.uniform(52, 66)
    pen, middle = ImageDraw.Draw(image), random.uniform(50, 78)
    clouds(random, pen, random.randrange(3), 26)
    pen.rectangle((0, height, SIZE, SIZE), fill=near(random, random.choice(((120, 176, 84), (206, 176, 110)))))
    pen.polygon([(middle - 4, height), (middle + 4, height), (124, SIZE), (4, SIZE)], fill=near(random, (96, 98, 104)))
    for k in range(5):
        near_y, far_y = height + (SIZE - height) * ((k + 0.6) / 5) ** 1.5, height + (SIZE - height) * (k / 5) ** 1.5
        x_near, x_far = (middle + (64 - middle) * (y - height) / (SIZE - height) for y in (near_y, far_y))
        w = 0.4 + 3 * (near_y - height) / (SIZE - height)
        pen.polygon(
            [(x_far - w / 2, far_y), (x_far + w / 2, far_y), (x_near + w, near_y), (x_near - w, near_y)],
            fill=(246, 226, 140),
        )
    return image, (height / SIZE + 0.2, 0.97)


def bricks(random: Random) -> tuple[Image.Image, Ground]:
    brick, high = (
        near(random, random.choice(((178, 84, 64), (150, 76, 60), (196, 150, 120), (130, 126, 128)))),
        random.choice((8, 10, 12)),
    )
    image, floor = Image.new("RGB", (SIZE, SIZE), tuple(min(c + 60, 255) for c in brick)), random.uniform(104, 116)
    pen = ImageDraw.Draw(image)
    for row, y in enumerate(range(0, SIZE, high)):
        for x in range(-(row % 2) * high, SIZE, 2 * high):
            pen.rectangle((x, y, x + 2 * high - 3, y + high - 3), fill=near(random, brick, 14))
    pen.rectangle((0, floor, SIZE, SIZE), fill=near(random, (150, 146, 140)))
    return image, (floor / SIZE + 0.02, 0.98)


PLACES: dict[str, tuple[Callable[[Random], tuple[Image.Image, Ground]], tuple[str, ...]]] = {
    "beach": (beach, ("on the beach", "at the beach", "on a sandy beach")),
    "snow": (snow, ("in the snow", "in a snowy landscape", "in winter")),
    "grass": (grass, ("on the grass", "on a green meadow", "in a park")),
    "space": (space, ("in space", "in outer space", "among the stars")),
    "moon": (moon, ("on the moon", "on the surface of the moon")),
    "city": (city, ("in the city", "in a city street", "downtown")),
    "wooden floor": (wood, ("on a wooden floor", "on wooden planks")),
    "under water": (water, ("under water", "underwater", "in the deep sea")),
    "desert": (desert, ("in the desert", "on sand dunes")),
    "sunset": (sunset, ("at sunset", "in front of a sunset", "in the evening")),
    "mountains": (mountains, ("in the mountains", "in front of mountains")),
    "room": (room, ("in a room", "indoors", "at home")),
    "forest": (forest, ("in the forest", "in the jungle", "in the woods")),
    "kitchen table": (table, ("on a table", "on a kitchen table", "in the kitchen")),
    "road": (road, ("on the road", "on a country road")),
    "brick wall": (bricks, ("in front of a brick wall", "by a brick wall")),
}
"""Name -> how to draw it, and how captions say it; the first way is the usual one."""
