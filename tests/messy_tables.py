"""Thirty tables as shops, sheets and logs export them, and what is to be understood of each column.

Each is a few lines, made by hand after real exports. Lines are repeated until there are enough rows to
tell; ``{n}`` in a cell is the number of its row, ``{ean}`` and ``{isbn}`` are numbers with a right check
digit, so that a column can be unique.
"""

from dataclasses import dataclass, field
from typing import Any

ROWS = 60


@dataclass(frozen=True)
class Messy:
    """A table of items or queries.

    Args:
        name: After what it was made.
        text: The header and a few lines.
        columns: Column -> kind, or kind and form with a colon between.
        first: Column -> what its cell in the first row is once it is read.
    """

    name: str
    text: str
    columns: dict[str, str]
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def csv(self) -> str:
        """The table as a file holds it."""
        header, *lines = self.text.strip().split("\n")
        rows = [_filled(lines[row % len(lines)], row + 1) for row in range(ROWS)]
        return "\n".join([header, *rows]) + "\n"


@dataclass(frozen=True)
class MessyLog:
    """A table of events: which column has which role, and the first event's time in seconds."""

    name: str
    text: str
    roles: dict[str, str]
    first_time: float | None = None


def _filled(line: str, number: int) -> str:
    ean = f"40063813{number:04}"
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(ean))
    isbn = f"34621{number:04}"
    check = -sum(int(digit) * (10 - place) for place, digit in enumerate(isbn)) % 11
    return (
        line.replace("{ean}", f"{ean}{-total % 10}")
        .replace("{isbn}", f"{isbn}{'X' if check == 10 else check}")
        .replace("{n}", str(number))
        .replace("{word}", "".join(chr(97 + int(digit)) for digit in str(number)))
    )


TABLES = (
    Messy(
        "german shop",
        """
artikelnr;bezeichnung;preis;rabatt;eingestellt;ean;plz;marke_id
A{n};Trinkflasche Edelstahl {n} ml;20,84;15 %;31.12.2023;{ean};01067;7
A{n};Wanderschuh Herren Größe {n};1.299,00;5 %;02.01.2024;{ean};10115;12
A{n};Zelt für {n} Personen;92,90;0 %;15.03.2024;{ean};80331;7
""",
        {
            "bezeichnung": "text",
            "preis": "number:number.comma",
            "rabatt": "number:number.point.percent",
            "eingestellt": "time:date",
            "ean": "shown",
            "plz": "categorical",
            "marke_id": "categorical",
        },
        {"preis": 20.84, "rabatt": 15.0, "eingestellt": "2023-12-31T00:00:00"},
    ),
    Messy(
        "german shop, prices with the sign behind",
        """
id;preis;uvp
A{n};92,41 €;1.099,- €
A{n};5,00 €;119,- €
A{n};1.299,00 €;59,- €
""",
        {"preis": "number:number.comma.EUR", "uvp": "number:number.comma.EUR"},
        {"preis": 92.41},
    ),
    Messy(
        "chinese shop",
        """
商品id,标题,标签,价格,上架日期,电话,邮编
p{n},复古连衣裙{n}号夏季新款,"[""新品"",""打折""]",¥128,2024年5月1日,010-62771234,100084
p{n},真皮双肩背包第{n}款,"[""热卖""]",¥89.50,2024年11月12日,021-55664321,200433
p{n},儿童智能手表{n}代,"[]",¥299,2023年12月31日,010-62771234,100084
""",
        {
            "标题": "text",
            "标签": "tags:list",
            "价格": "number:number.point.CNY",
            "上架日期": "time:date",
            "电话": "categorical",
            "邮编": "categorical",
        },
        {"标签": ["新品", "打折"], "价格": 128.0, "上架日期": "2024-05-01T00:00:00"},
    ),
    Messy(
        "chinese shop, amounts in yuan",
        """
商品编号,品牌编码,售价,销量,折扣
s{n},1001,128元,1{n},95%
s{n},1002,89.5元,2{n},8%
s{n},1003,"1,299元",3{n},100%
""",
        {
            "品牌编码": "categorical",
            "售价": "number:number.point.CNY",
            "销量": "number",
            "折扣": "number:number.point.percent",
        },
        {"售价": 128.0},
    ),
    Messy(
        "american shop",
        """
sku,name,price,list_price,added,zip,phone
K-{n},Cast iron skillet {n} inch,$24.99,"$1,299.00",12/31/2023,02139,(617) 555-0123
K-{n},Waffle maker no. {n},$5,$49.95,01/15/2024,94110,(415) 555-0199
K-{n},Pizza stone for {n},$13.50,$20.00,03/04/2024,02139,(617) 555-0123
""",
        {
            "name": "text",
            "price": "number:number.point.USD",
            "list_price": "number:number.point.USD",
            "added": "time:date.month",
            "zip": "categorical",
            "phone": "categorical",
        },
        {"price": 24.99, "list_price": 1299.0, "added": "2023-12-31T00:00:00"},
    ),
    Messy(
        "british shop",
        """
id,title,price,first_seen,postcode
b{n},Tea towel with {n} ducks,£7.50,31/12/2023,SW1A 1AA
b{n},Biscuit tin number {n},"£1,050.00",15/01/2024,M1 1AE
b{n},Umbrella for {n} people,£12,03/04/2024,EC1A 1BB
""",
        {
            "title": "text",
            "price": "number:number.point.GBP",
            "first_seen": "time:date.day",
            "postcode": "categorical",
        },
        {"first_seen": "2023-12-31T00:00:00"},
    ),
    Messy(
        "WooCommerce products",
        """
ID,SKU,Name,Description,Regular price,Categories,Images,Stock,External URL
{n},w{n},Hoodie of kind {n},<p>Soft &amp; <b>w</b>arm</p>,45,"Hoodies, Sale",//a.io/a{n}.jpg,12,//a.io/{n}
{n},w{n},Shirt of kind {n},<p>Cotton.<br />{n}°</p>,18.5,Tshirts,"//a.io/b.jpg, //a.io/c.png",-,//a.io/{n}
{n},w{n},Beanie of kind {n},<p>One size fits {n}</p>,20,"Hats, Sale",https://a.io/d{n}.jpg,7,https://a.io/{n}
""",
        {
            "SKU": "shown",
            "Name": "text",
            "Description": "text:html",
            "Regular price": "number",
            "Categories": "tags",
            "Images": "shown:image",
            "Stock": "number:number.point",
            "External URL": "shown:link",
        },
        {"Description": "Soft & warm", "Stock": 12.0},
    ),
    Messy(
        "Shopify products",
        """
Handle,Title,Body (HTML),Vendor,Tags,Variant Price,Variant Barcode,Image Src,Published
h-{n},Linen shirt {n} in white,<div><p>Linen no. {n}.</p><ul><li>cool</li></ul></div>,Acme,"linen, summer",49.00,'{ean},https://cdn.test/s/{n}.jpg?v=16,true
h-{n},Wool scarf {n} in grey,<div><p>Wool no. {n}.</p></div>,Nord,"wool, winter",29.00,'{ean},https://cdn.test/s/{n}.png?v=2,false
h-{n},Rain coat {n} in red,"<div class=""x"">Coat no. {n}.</div>",Acme,"coat, winter",120.00,'{ean},https://cdn.test/s/{n}.jpg?v=3,true
""",
        {
            "Title": "text",
            "Body (HTML)": "text:html",
            "Vendor": "categorical",
            "Tags": "tags",
            "Variant Price": "number",
            "Variant Barcode": "shown",
            "Image Src": "shown:image",
            "Published": "categorical",
        },
        {"Body (HTML)": "Linen no. 1. cool"},
    ),
    Messy(
        "swiss shop",
        """
id;preis;plz
s{n};CHF 1'299.00;8001
s{n};CHF 12.50;3011
s{n};CHF 990.00;8001
""",
        {"preis": "number:number.point.CHF", "plz": "categorical"},
        {"preis": 1299.0},
    ),
    Messy(
        "french shop",
        """
id;prix;code_postal;ajout
f{n};1 299,00 €;75001;14/07/2023
f{n};12,5 €;13002;01/02/2024
f{n};990 €;75001;03/03/2024
""",
        {
            "prix": "number:number.comma.EUR",
            "code_postal": "categorical",
            "ajout": "time:date.day",
        },
        {"prix": 1299.0},
    ),
    Messy(
        "indian shop",
        """
id,actual_price,discount_percentage,rating_count
i{n},"₹1,09,999",64%,"24,269"
i{n},₹399,43%,"7,928"
i{n},"₹1,099",5%,363
""",
        {
            "actual_price": "number:number.point.INR",
            "discount_percentage": "number:number.point.percent",
            "rating_count": "number:number.point",
        },
        {"actual_price": 109_999.0, "rating_count": 24_269.0},
    ),
    Messy(
        "pandas frame with lists and vectors",
        """
id,genres,embedding,scores
m{n},"['Drama', ""Children's""]","[0.1, -2.5, 3.0]","[0.5 1.5]"
m{n},['Comedy'],"[1.0, 0.25, 1e-3]","[2.  0.25]"
m{n},[],"[0.0, 0.0, 9.5]","[1. 3.]"
""",
        {"genres": "tags:list", "embedding": "vector:list.numbers", "scores": "vector:list.numbers"},
        {"genres": ["Drama", "Children's"], "embedding": [0.1, -2.5, 3.0], "scores": [0.5, 1.5]},
    ),
    Messy(
        "lists of ids as JSON",
        """
id,related,authors
r{n},"[101, 102]","[""Ann, B."", ""Cho""]"
r{n},[103],"[""Dee""]"
""",
        {"related": "tags:list", "authors": "tags:list"},
        {"related": ["101", "102"], "authors": ["Ann, B.", "Cho"]},
    ),
    Messy(
        "film data with objects in cells",
        """
id,genres,release_date
t{n},"[{""id"": 28, ""name"": ""Action""}, {""id"": 12, ""name"": ""Adventure""}]",2009-12-10
t{n},"[{""id"": 18, ""name"": ""Drama""}]",2015-10-26
""",
        {"genres": "shown", "release_date": "time"},
    ),
    Messy(
        "books with ISBN",
        """
id,isbn,title,year
b{n},{isbn},The {n} lives of a cat,1999
b{n},{isbn},A room with {n} views,2003
b{n},{isbn},Chapter and verse {n},1987
""",
        {"isbn": "shown", "title": "text", "year": "categorical"},
    ),
    Messy(
        "books with a name that says nothing",
        """
id,number_13,maker
b{n},{ean},+49 30 901820
b{n},{ean},+33 1 42685300
""",
        {"number_13": "shown", "maker": "categorical"},
    ),
    Messy(
        "warehouse with codes",
        """
id,brand_id,category_code,shelf,price_cents
w{n},17,40010{n},{n},1{n}99
w{n},904,40020{n},{n},2{n}49
w{n},23,40030{n},{n},3{n}00
""",
        {
            "brand_id": "categorical",
            "category_code": "shown",
            "shelf": "shown",
            "price_cents": "number",
        },
    ),
    Messy(
        "thousands that could be decimals",
        """
id;einwohner;population
c{n};3.769.495;"1,234"
c{n};1.841.179;"2,500"
c{n};753.056;"7,000"
""",
        {"einwohner": "number:number.comma", "population": "number:number.point"},
        {"einwohner": 3_769_495.0, "population": 1234.0},
    ),
    Messy(
        "ambiguous dates: day or month first",
        """
id,added
d{n},03/04/2024
d{n},01/02/2024
""",
        {"added": "time:date.month"},
        {"added": "2024-03-04T00:00:00"},
    ),
    Messy(
        "dates with names of months",
        """
id,published,updated
n{n},"May 3, 2024",3 May 2024
n{n},"December 31, 2023",31 Dec 2023
""",
        {"published": "time:date", "updated": "time:date"},
        {"published": "2024-05-03T00:00:00"},
    ),
    Messy(
        "datetimes of a CMS",
        """
id,modified
n{n},31.12.2023 23:59
n{n},01.01.2024 00:15
""",
        {"modified": "time:date"},
        {"modified": "2023-12-31T23:59:00"},
    ),
    Messy(
        "a currency in front of every amount",
        """
id,fee
u{n},USD 5
u{n},USD 17.50
""",
        {"fee": "number:number.point.USD"},
        {"fee": 5.0},
    ),
    Messy(
        "amounts in two currencies",
        """
id,amount
u{n},€5.00
u{n},$17.50
""",
        {"amount": "categorical"},
    ),
    Messy(
        "titles, versions, ranges and fractions",
        """
id,title,version,years,edition
x{n},"Heat, The ({n})",1.2.{n},1999-2000,3/4
x{n},"Piano, The ({n})",1.10.{n},2001-2004,1/2
x{n},"Sting, The ({n})",2.0.{n},1987-1999,1/4
""",
        {"title": "text", "version": "shown", "years": "categorical", "edition": "categorical"},
    ),
    Messy(
        "news with markup and pictures",
        """
id,headline,body,thumbnail
n{n},Council &amp; mayor agree on {n},<p>On <b>day {n}</b> they met.</p><script>x()</script>,//a.test/{n}
n{n},Storm &quot;{n}&quot; hits coast,<p>Wind of {n} km/h.</p>,//a.test/{n}
""",
        {"headline": "text:html", "body": "text:html", "thumbnail": "shown:image"},
        {"headline": "Council & mayor agree on 1", "body": "On day 1 they met."},
    ),
    Messy(
        "customers",
        """
customer_id;postleitzahl;telefon;umsatz;kunde_seit
k{n};01067;+49 351 4960;1.204,50;01.02.2019
k{n};80331;089 233-00;87,90;17.11.2021
k{n};10115;+49 30 115115;0,00;30.06.2020
""",
        {
            "postleitzahl": "categorical",
            "telefon": "categorical",
            "umsatz": "number:number.comma",
            "kunde_seit": "time:date",
        },
        {"umsatz": 1204.5},
    ),
    Messy(
        "a clean table of each kind",
        """
item_id,title,genres,price,year,released,colour,is_new,plays
m{n},Toy Story {word},Comedy|Drama,4.5,1995,1995-11-22,red,true,1{n}0
m{n},Heat of {word},Action,3.25,1996,1995-12-15,blue,false,2{n}5
m{n},Sabrina or {word},Comedy|Romance,5,1995,1996-01-01,red,true,3{n}1
""",
        {
            "title": "text",
            "genres": "tags",
            "price": "number",
            "year": "categorical",
            "released": "time",
            "colour": "categorical",
            "is_new": "categorical",
            "plays": "number",
        },
        {"released": "1995-11-22", "price": 4.5},
    ),
)  # fmt: skip

LOGS = (
    MessyLog(
        "GA4-like event log",
        """
user_pseudo_id,event_name,event_timestamp,item_id
1a.2b,view_item,1704067200000000,SKU1
1a.2b,purchase,1704067260000000,SKU2
3c.4d,view_item,1704070800000000,SKU1
""",
        {"query": "user_pseudo_id", "item": "item_id", "time": "event_timestamp"},
        1_704_067_200.0,
    ),
    MessyLog(
        "log of a site's search",
        """
search_term,clicked_doc,timestamp
red shoes,D7,2024-01-01T09:30:00Z
blue jacket,D8,2024-01-01T09:31:00Z
""",
        {"query": "search_term", "item": "clicked_doc", "time": "timestamp"},
        1_704_101_400.0,
    ),
    MessyLog(
        "Chinese shop's log",
        """
会员编号,商品编码,行为类型,下单时间,购买数量
u1,G1,浏览,2024/01/01 17:30,1
u2,G2,购买,2024/01/01 17:31,2
""",
        {"query": "会员编号", "item": "商品编码", "time": "下单时间", "weight": "购买数量"},
        1_704_130_200.0,
    ),
    MessyLog(
        "search log",
        """
query;doc_id;click;date
rote schuhe;D7;1;31.12.2023 18:00
blaue jacke;D8;0;01.01.2024 09:30
""",
        {"query": "query", "item": "doc_id", "label": "click", "time": "date"},
        1_704_045_600.0,
    ),
    MessyLog(
        "Last.fm-like counts",
        """
user_id\tartist_id\tplays
00000c28\t3bd73256\t2137
00000c28\tf2fb0ff0\t1099
00001411\t3bd73256\t25
""",
        {"query": "user_id", "item": "artist_id", "weight": "plays"},
    ),
)
